use proptest::prelude::*;

use super::*;
use crate::forward::{PortIndex, PortRef};

const LOOK: Duration = Duration::from_millis(10);
const OURS: Pair = Pair {
    owner: 4,
    helper: 5,
};

fn key(port: u16) -> QueueKey {
    let index = PortIndex(port);
    QueueKey {
        port: PortRef {
            index,
            incarnation: 0,
        },
        queue: 0,
    }
}

/// Frames of so many bytes, in so many millions a second, of a queue that stands.
fn rate(millions: f64, len: u64) -> Sample {
    let frames = (millions * 1e6 * LOOK.as_secs_f64()) as u64;
    Sample {
        elapsed: LOOK,
        frames,
        bytes: frames * len,
        stands: true,
    }
}

/// The same, and it does not.
fn met(millions: f64, len: u64) -> Sample {
    Sample {
        stands: false,
        ..rate(millions, len)
    }
}

/// A queue and its clock.
#[derive(Default)]
struct Run {
    gains: Gains,
    at: Duration,
}

impl Run {
    fn alone(&mut self, samples: impl IntoIterator<Item = Sample>) {
        for sample in samples {
            self.at += sample.elapsed;
            self.gains.end(key(0));
            self.gains.alone(key(0), self.at, OURS.owner, sample);
        }
    }

    fn shared(&mut self, samples: impl IntoIterator<Item = Sample>) -> Option<End> {
        let mut looks = samples.into_iter().map(|sample| {
            self.at += sample.elapsed;
            self.gains.shared(key(0), self.at, OURS, sample, true)
        });
        let end = looks.find_map(|end| end);
        assert!(looks.next().is_none(), "{end:?} was said too early");
        end
    }

    /// Three windows alone, one to settle and three with a helper.
    fn trial(&mut self, alone: f64, shared: f64, len: u64) -> Option<End> {
        self.alone([rate(alone, len); 3]);
        self.gains.begin(key(0), OURS);
        self.shared([rate(shared, len); 4])
    }

    fn is_vain(&self) -> bool {
        self.gains.is_vain(key(0), self.at, OURS)
    }
}

fn rest(end: Option<End>) -> String {
    match end {
        Some(End::Rest(why)) => why,
        _ => panic!("{end:?}"),
    }
}

#[test]
fn what_brings_less_than_a_tenth_is_in_vain() {
    let of = |alone, shared| Run::default().trial(alone, shared, 1500);
    for (alone, shared, why) in [
        (1.02, 1.03, "nothing: 1.02 Mframes/s alone, 1.03 shared"),
        (2.0, 1.64, "nothing: 2.00 Mframes/s alone, 1.64 shared"),
        (1.0, 1.09, "too little: 1.00 Mframes/s alone, 1.09 shared"),
        (0.5, 0.52, "nothing: 500.00 kframes/s alone, 520.00 shared"),
    ] {
        let wanted = format!("a second worker gains {why}");
        assert_eq!(rest(of(alone, shared)), wanted);
    }
    for shared in [1.11, 1.5, 3.0] {
        assert_eq!(of(1.0, shared), None);
    }
}

#[test]
fn one_disturbed_window_does_not_count_nor_the_one_in_which_outputs_are_dealt_out() {
    let (slow, alone, same, more) = [0.2, 1.0, 1.02, 1.3].map(|m| rate(m, 1500)).into();
    let trial = |before: [Sample; 3], after: [Sample; 4]| {
        let mut run = Run::default();
        run.alone(before);
        run.gains.begin(key(0), OURS);
        run.shared(after)
    };
    for at in 0..3 {
        let mut before = [alone; 3];
        before[at] = slow;
        assert!(rest(trial(before, [same; 4])).contains("nothing"));
        assert_eq!(trial(before, [more; 4]), None);
        let mut after = [more; 4];
        after[at + 1] = slow;
        assert_eq!(trial([alone; 3], after), None);
        let mut after = [same; 4];
        after[at + 1] = more;
        assert!(rest(trial([alone; 3], after)).contains("nothing"));
    }
    // Of four, two are slow and two are not: the first must not be among those that count.
    assert_eq!(trial([alone; 3], [slow, slow, more, more]), None);
    rest(trial([alone; 3], [more, more, same, same]));
}

#[test]
fn a_queue_that_has_what_it_wants_is_not_judged() {
    let mut run = Run::default();
    run.alone([rate(1.0, 1500); 3]);
    run.gains.begin(key(0), OURS);
    assert_eq!(run.shared([met(1.01, 1500); 50]), None);
    // It was seen standing by chance.
    let [stands, has_enough] = [rate(1.01, 1500), met(1.01, 1500)];
    assert_eq!(run.shared([stands, has_enough, has_enough]), None);
    assert!(!run.is_vain());
    // It wants more, and does not get it: most of the last windows.
    let end = run.shared([rate(1.01, 1500); 2]);
    assert!(rest(end).contains("nothing"));
    assert!(run.is_vain());
}

#[test]
fn what_was_in_vain_is_tried_again_later_and_later() {
    let mut run = Run::default();
    for wanted in [5, 10, 20, 40, 80, 160, 300, 300] {
        assert!(!run.is_vain());
        rest(run.trial(1.0, 1.0, 1500));
        let at = run.at;
        let other = Pair {
            owner: OURS.owner,
            helper: 6,
        };
        assert!(run.is_vain() && run.gains.was_vain(key(0), OURS));
        assert!(!run.gains.is_vain(key(0), at, other) && !run.gains.was_vain(key(0), other));
        assert!(!run.gains.is_vain(key(1), at, OURS) && !run.gains.was_vain(key(1), OURS));
        run.at = at + Duration::from_secs(wanted) - LOOK;
        assert!(run.is_vain(), "after {wanted} s");
        run.at = at + Duration::from_secs(wanted);
    }
    // A gain in between, and it counts from the start.
    assert_eq!(run.trial(1.0, 1.5, 1500), None);
    assert!(!run.gains.was_vain(key(0), OURS));
    run.alone([rate(1.0, 1500)]);
    rest(run.trial(1.0, 1.0, 1500));
    run.at += SHORTEST;
    assert!(!run.is_vain());
}

#[test]
fn what_was_found_is_of_such_frames_and_does_not_count_for_ever() {
    let vain = || {
        let mut run = Run::default();
        rest(run.trial(1.0, 1.0, 600));
        run.at += SHORTEST / 2;
        run
    };
    for (len, counts) in [
        (600, true),
        (310, true),
        (1190, true),
        (300, false),
        (1200, false),
    ] {
        let mut run = vain();
        // A single look does not say what the traffic is.
        run.alone([rate(1.0, len); 2]);
        assert!(run.is_vain());
        run.alone([rate(1.0, len)]);
        assert_eq!(run.is_vain(), counts, "{len} bytes");
    }
    // It is twice as long the second time, unless it was very long ago.
    for (ago, counts) in [(LONGEST, true), (LONGEST * 2, false)] {
        let mut run = vain();
        run.at += ago;
        rest(run.trial(1.0, 1.0, 600));
        run.at += SHORTEST;
        assert_eq!(run.is_vain(), counts, "{ago:?}");
    }
}

#[test]
fn a_gain_is_found_again_at_times_while_the_queue_stands() {
    let mut run = Run::default();
    for wanted in [5, 10, 20, 40] {
        assert_eq!(run.trial(1.0, 1.5, 1500), None);
        run.at += Duration::from_secs(wanted) - LOOK * 2;
        assert_eq!(run.shared([rate(1.5, 1500)]), None, "after {wanted} s");
        let end = run.shared([rate(1.5, 1500)]);
        let why = "its rate alone, 1.00 Mframes/s, is measured again: now it is 1.50 Mframes/s";
        assert_eq!(end, Some(End::Check(why.into())));
        assert!(!run.is_vain());
    }
    // It only seemed one.
    assert!(rest(run.trial(1.5, 1.5, 1500)).contains("1.50 Mframes/s alone, 1.50"));
    // There is no need to know while it has what it wants.
    let mut run = Run::default();
    assert_eq!(run.trial(1.0, 1.5, 1500), None);
    assert_eq!(run.shared([met(1.2, 1500); 2]), None);
    run.at += LONGEST;
    assert_eq!(run.shared([met(1.2, 1500); 9]), None);
}

#[test]
fn frames_that_got_short_end_what_long_ones_gained() {
    let mut run = Run::default();
    assert_eq!(run.trial(1.0, 1.5, 1500), None);
    assert_eq!(run.shared([rate(1.7, 800); 9]), None);
    assert_eq!(run.shared([rate(2.0, 700)]), None, "that was one window");
    let why = rest(run.shared([rate(2.0, 700)]));
    assert_eq!(
        why,
        "its frames have 700 bytes, and had 1500 when it was tried"
    );
}

/// What a frame costs is in part its length, so frames that got shorter come faster without a gain.
#[test]
fn other_frames_are_no_gain() {
    let trial = |before, after| {
        let mut run = Run::default();
        run.alone([before; 3]);
        run.gains.begin(key(0), OURS);
        run.shared([after; 4])
    };
    rest(trial(rate(1.0, 1500), rate(1.15, 1200)));
    rest(trial(rate(1.0, 1200), rate(0.9, 1500)));
    assert_eq!(trial(rate(1.0, 1500), rate(1.4, 1200)), None);
    assert_eq!(trial(rate(1.0, 1200), rate(1.2, 1500)), None);
}

#[test]
fn a_rate_alone_takes_some_windows_that_are_near_in_time_and_on_one_core() {
    let known = |run: &Run| run.gains.rate(key(0)).map(|rate| rate.frames);
    let mut run = Run::default();
    run.alone([rate(1.0, 1500), rate(1.0, 1500), met(1.0, 1500)]);
    assert_eq!(known(&run), None, "it does not stand");
    run.alone([rate(1.0, 1500)]);
    assert_eq!(known(&run), Some(1e6));
    run.at += FRESH;
    run.alone([met(1.0, 1500)]);
    assert_eq!(known(&run), None, "it was long ago");
    run.alone([rate(1.0, 1500); 3]);
    assert!(known(&run).is_some());
    let elsewhere = OURS.helper;
    run.gains.alone(key(0), run.at, elsewhere, rate(1.0, 1500));
    assert_eq!(known(&run), None, "another core has it");
    // Looks that are short are too short alone.
    let short = Sample {
        elapsed: WINDOW / 16,
        frames: 500,
        bytes: 500 * 1500,
        stands: true,
    };
    let mut run = Run::default();
    run.alone([short; 16 * WINDOWS - 1]);
    assert_eq!(known(&run), None);
    run.alone([short]);
    assert_eq!(known(&run), Some(1e6));
    // One at which it does not stand spoils those that it would have been one window with.
    let mut run = Run::default();
    run.alone([short; 40]);
    run.alone([met(1.0, 1500)]);
    run.alone([short; 15]);
    assert_eq!(known(&run), None);
    run.alone([short]);
    assert_eq!(known(&run), Some(1e6));
}

#[test]
fn who_helps_for_another_reason_is_not_judged() {
    let end = |prepare: fn(&mut Run)| {
        let mut run = Run::default();
        run.alone([rate(1.0, 1500); 3]);
        prepare(&mut run);
        let end = run.shared([rate(1.0, 1500); 20]);
        assert!(!run.gains.is_trying());
        end
    };
    let begin = |run: &mut Run| run.gains.begin(key(0), OURS);
    rest({
        let mut run = Run::default();
        run.alone([rate(1.0, 1500); 3]);
        begin(&mut run);
        assert!(run.gains.is_trying());
        run.shared([rate(1.0, 1500); 4])
    });
    // The operator asked for it, before or meanwhile; another worker helps; it was alone in between.
    assert_eq!(end(|_| ()), None);
    let asked = |run: &mut Run| {
        run.gains.begin(key(0), OURS);
        run.gains.asked(key(0));
    };
    assert_eq!(end(asked), None);
    let other = |run: &mut Run| {
        let helper = 6;
        run.gains.begin(key(0), Pair { helper, ..OURS });
    };
    assert_eq!(end(other), None);
    let alone = |run: &mut Run| {
        run.gains.begin(key(0), OURS);
        run.alone([rate(1.0, 1500)]);
    };
    assert_eq!(end(alone), None);
}

#[test]
fn nothing_is_kept_for_ever() {
    let mut run = Run::default();
    run.alone([met(1.0, 1500); 3]);
    assert!(run.gains.0.is_empty(), "it never stood");
    rest(run.trial(1.0, 1.0, 1500));
    // It leaves, comes back and is what it was.
    run.gains.forget(run.at, |_| true);
    assert!(run.is_vain());
    run.at += SHORTEST + LONGEST;
    run.gains.forget(run.at, |_| true);
    assert!(run.gains.0.is_empty());
    run.alone([rate(1.0, 1500); 3]);
    run.gains.forget(run.at, |_| false);
    assert_eq!(run.gains.0.len(), 1);
    run.gains.begin(key(0), OURS);
    run.gains.forget(run.at, |_| true);
    assert!(run.gains.0.is_empty());
}

proptest! {
    /// Chance of some percent, and in each half a window that was disturbed, do not change what comes of it.
    #[test]
    fn a_gain_is_told_from_none_by_any_rates(
        alone in 0.05_f64..20.0,
        ratio in prop_oneof![0.5_f64..1.04, 1.17_f64..2.5],
        len in 128_u64..9000,
        chance in prop::array::uniform7(0.98_f64..1.02),
        disturbed in (0_usize..3, 4_usize..7, 0.01_f64..1.0),
    ) {
        let mut run = Run::default();
        let look = |n: usize| {
            let all = if n < 3 { alone } else { alone * ratio };
            let part = if n == disturbed.0 || n == disturbed.1 { disturbed.2 } else { 1.0 };
            rate(all * chance[n] * part, len)
        };
        run.alone((0..3).map(look));
        run.gains.begin(key(0), OURS);
        let end = run.shared((3..7).map(look));
        prop_assert_eq!(end.is_some(), ratio < 1.1, "{:?}", end);
    }
}
