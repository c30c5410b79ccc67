//! Chains of every kind mixed, against a model of few lines: simple ones that are resolved ahead, and all that end a look
//! ahead, in rings of any size, over their end.

use std::collections::VecDeque;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::testing::INDIRECT;

both!(
    any_mix_of_chains_comes_back_in_order,
    any_mix_of_buffers_comes_back_in_order,
);

/// A kind of chain: what is offered, and what comes of it.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// One descriptor, which is resolved ahead.
    Simple,
    Pieces(u8),
    Table,
    Unmapped,
    /// Not the first of its descriptors.
    UnmappedBehind,
    Short,
    TooSmallTable,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        4 => Just(Kind::Simple),
        1 => (2u8..4).prop_map(Kind::Pieces),
        1 => Just(Kind::Table),
        1 => Just(Kind::Unmapped),
        1 => Just(Kind::UnmappedBehind),
        1 => Just(Kind::Short),
        1 => Just(Kind::TooSmallTable),
    ]
}

impl Kind {
    /// Offers it if there is room; `bytes` in all, header included, at `buffer`.
    fn offer<D: Driver>(self, rig: &mut Rig<D>, id: u16, at: u64, bytes: u32, flags: u16) -> bool {
        let nowhere = (MEMORY - 3, 60, flags);
        let chain: Vec<Piece> = match self {
            Self::Simple | Self::Table => vec![(at, bytes, flags)],
            Self::Pieces(count) => {
                // The header's pieces first, however long.
                let cut = |piece: u8| 5 * u32::from(piece);
                let last = count - 1;
                let mut chain: Vec<_> = (0..last)
                    .map(|piece| (at + u64::from(cut(piece)), 5, flags))
                    .collect();
                chain.push((at + u64::from(cut(last)), bytes - cut(last), flags));
                chain
            }
            Self::Unmapped => vec![nowhere],
            Self::UnmappedBehind => vec![(at, 20, flags), nowhere],
            Self::Short => vec![(at, 11, flags)],
            Self::TooSmallTable => vec![(TABLES, 8, INDIRECT)],
        };
        if rig.driver.free() < chain.len() as u64 {
            return false;
        }
        if let Self::Table = self {
            rig.offer_table(id, TABLES + 0x40 * u64::from(id), &chain);
        } else {
            rig.offer(id, &chain);
        }
        true
    }

    fn error(self) -> Option<ChainError> {
        match self {
            Self::Simple | Self::Pieces(_) | Self::Table => None,
            Self::Unmapped | Self::UnmappedBehind => Some(ChainError::Unmapped),
            Self::Short => Some(ChainError::Short),
            Self::TooSmallTable => Some(ChainError::IndirectLength),
        }
    }
}

fn run<T: std::fmt::Debug>(
    strategy: &impl Strategy<Value = T>,
    test: impl Fn(T) -> Result<(), TestCaseError>,
) {
    let config = ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = TestRunner::new(config);
    if let Err(error) = runner.run(strategy, test) {
        panic!("{error}");
    }
}

/// Ring sizes and where rings begin; those of packed rings need be no power of two.
fn sizes<D: Driver>() -> impl Strategy<Value = (u16, u64)> {
    let size = if D::FEATURES == 0 {
        prop_oneof![Just(2u16), Just(4), Just(8), Just(64), Just(256)].boxed()
    } else {
        prop_oneof![2u16..9, 30u16..35, 60u16..68, Just(256)].boxed()
    };
    (size, prop_oneof![0u64..300, 65_400u64..65_700])
}

/// Simple chains behind malformed ones and the other way round, in rings of any size, from any place, by bursts of any
/// length: every chain comes out once, in order, as what it is.
fn any_mix_of_chains_comes_back_in_order<D: Driver>() {
    let rounds = prop::collection::vec((prop::collection::vec(kind(), 0..50), 0usize..40), 1..30);
    run(&(sizes::<D>(), rounds), |((size, start), rounds)| {
        let mut rig = Rig::<D>::new(size);
        rig.driver = D::starting_at(&rig.guest, RING, size, start);
        let mut tx = rig.tx(PLAIN);
        let mut out = VecDeque::new();
        let mut number = 0u64;
        for (kinds, max) in rounds {
            for kind in kinds {
                let (id, at) = ((number % 256) as u16, Rig::<D>::buffer(number % 256));
                let len = 60 + (number % 200) as u32;
                if out.len() > 200 || !kind.offer(&mut rig, id, at, HEADER + len, 0) {
                    break;
                }
                let frame = vec![number as u8; len as usize];
                rig.guest.write(at + u64::from(HEADER), &frame);
                out.push_back((id, kind.error().map_or(Ok(frame), Err)));
                number += 1;
            }
            let frames = tx.take(max).unwrap();
            prop_assert!(frames.len() == out.len().min(max.min(MAX_BURST)));
            let mut ids = Vec::new();
            for taken in frames {
                let (id, expected) = out.pop_front().unwrap();
                prop_assert_eq!(taken.map(|(_, bytes)| bytes), expected);
                ids.push((id, 0));
            }
            prop_assert_eq!(rig.used(), ids);
        }
        Ok(())
    });
}

/// What a receive ring must do with a frame, said as simply as can be: the buffers that it takes, and with how much in
/// each.
fn deliver(
    buffers: &[(Option<ChainError>, u32)],
    mergeable: bool,
    needed: u32,
) -> (Result<(), RxError>, Vec<u32>) {
    let (mut lens, mut left) = (Vec::new(), needed);
    for (number, (error, room)) in buffers.iter().enumerate() {
        let short = (number == 0 && *room <= HEADER).then_some(ChainError::Short);
        if let Some(error) = error.or(short) {
            return (Err(RxError::Malformed(error)), vec![0; number + 1]);
        }
        lens.push(left.min(*room));
        left -= left.min(*room);
        if left == 0 {
            return (Ok(()), lens);
        }
        if !mergeable {
            return (Err(RxError::TooBig), Vec::new());
        }
    }
    (Err(RxError::Full), Vec::new())
}

/// The same where the switch writes, against a model of few lines.
fn any_mix_of_buffers_comes_back_in_order<D: Driver>() {
    let buffers = prop::collection::vec((kind(), 20u32..400), 0..50);
    let frames = prop::collection::vec(1u32..900, 0..40);
    let rounds = prop::collection::vec((buffers, frames, 0usize..40), 1..12);
    run(
        &(sizes::<D>(), rounds, any::<bool>()),
        |((size, start), rounds, mergeable)| {
            let mut rig = Rig::<D>::new(size);
            rig.driver = D::starting_at(&rig.guest, RING, size, start);
            let mut rx = rig.rx(if mergeable { MERGED } else { PLAIN });
            let mut out: Vec<(u16, Option<ChainError>, u32)> = Vec::new();
            let mut number = 0u64;
            for (kinds, frames, expected) in rounds {
                for (kind, bytes) in kinds {
                    let (id, at) = ((number % 256) as u16, Rig::<D>::buffer(number % 256));
                    if out.len() > 200 || !kind.offer(&mut rig, id, at, bytes, WRITE) {
                        break;
                    }
                    // A short one is too short for a header only where there is one.
                    out.push(match kind {
                        Kind::Short => (id, None, 11),
                        _ => (id, kind.error(), bytes),
                    });
                    number += 1;
                }
                let mut burst = rx.begin(expected).unwrap();
                let mut wanted = Vec::new();
                for len in frames {
                    let frame = vec![len as u8; len as usize];
                    let rooms: Vec<_> =
                        out.iter().map(|(_, error, room)| (*error, *room)).collect();
                    let (result, lens) = deliver(&rooms, mergeable, HEADER + len);
                    let put = burst.put(&VirtioNetHdr::default(), &[&frame], Pieces::empty());
                    prop_assert_eq!(put, result);
                    for (used, (id, ..)) in lens.iter().zip(out.drain(..lens.len())) {
                        wanted.push((id, *used));
                    }
                    if result.is_ok() {
                        let (first, used) = wanted[wanted.len() - lens.len()];
                        let at = Rig::<D>::buffer(first.into());
                        let bytes = rig.guest.read(at + 10, used as usize - 10);
                        prop_assert_eq!(usize::from(bytes[0]), lens.len(), "num_buffers");
                        prop_assert!(bytes[2..].iter().all(|byte| *byte == len as u8));
                    }
                }
                prop_assert_eq!(burst.is_full(), out.is_empty());
                burst.finish();
                prop_assert_eq!(rig.used(), wanted);
            }
            Ok(())
        },
    );
}
