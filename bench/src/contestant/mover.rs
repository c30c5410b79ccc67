//! The bare mover: one copy from ring to ring by a thread of ours, no switching, no checks, no socket.
//! Nothing that copies once between these guests can be faster; every switch is held against it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::*};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vswitch_simguest::driver::{Notifier, RxQueue, TxQueue};
use vswitch_simguest::memory::Memory;
use vswitch_simguest::mover;

use super::{Contestant, Setup, guest_layout, queue_options};
use crate::cpu::Pinned;
use crate::generator::{Ends, Wire};
use crate::interference::this_thread;
use crate::{Error, Result};

/// Frames moved at once.
const BURST: u16 = 64;
/// How long the thread may take to do as it is told.
const LIMIT: Duration = Duration::from_secs(5);

// What the thread is to do, and that it stands still.
const STAND: u8 = 0;
const STANDS: u8 = 1;
const RUN: u8 = 2;
const END: u8 = 3;

/// The mover, in a thread of this process.
#[derive(Debug)]
pub struct Mover {
    wire: Wire,
    state: Arc<AtomicU8>,
    thread: Option<JoinHandle<()>>,
    task: PathBuf,
}

impl Mover {
    /// Makes two guests and a thread between them, which stands still.
    pub fn start(setup: Setup) -> Result<Self> {
        let placement = setup.placement;
        let (wire, [mut there, mut back]) = between_guests(setup)?;
        let state = Arc::new(AtomicU8::new(STAND));
        let (says, hears) = std::sync::mpsc::channel();
        let told = Arc::clone(&state);
        let work = move || {
            let pinned = Pinned::to(placement.worker);
            let ready = pinned.as_ref().map(|_| this_thread());
            let can = ready.is_ok();
            // Who asks has gone only if the start has failed already.
            let _ = says.send(ready.map_err(ToString::to_string));
            if can {
                obey(&told, || there.run(BURST) + back.run(BURST) > 0);
            }
        };
        let builder = std::thread::Builder::new().name("mover".into());
        let thread = builder.spawn(work).map_err(Error::io("start a thread"))?;
        let failed = |what| Error::Contestant {
            whom: "mover".into(),
            what,
            log: String::new(),
        };
        let task = hears
            .recv()
            .map_err(|_| failed("its thread does not start".into()))?
            .map_err(failed)?;
        Ok(Self {
            wire,
            state,
            thread: Some(thread),
            task,
        })
    }

    fn tell(&self, state: u8) {
        self.state.store(state, Release);
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

/// Two guests, and what moves frames between them, from A to B and back, by whatever thread runs it.
pub fn between_guests(setup: Setup) -> Result<(Wire, [mover::Mover; 2])> {
    let features = setup.features();
    let guest = || -> Result<(Memory, Ends)> {
        let memory = Memory::new(&guest_layout())?;
        let notifier = || Notifier::new().map_err(Error::io("make event descriptors"));
        let (tx, rx) = queue_options();
        let tx = TxQueue::new(&memory, notifier()?, features, &tx)?;
        let rx = RxQueue::new(&memory, notifier()?, features, &rx)?;
        Ok((memory, Ends { tx, rx }))
    };
    let ((memory_a, a), (memory_b, b)) = (guest()?, guest()?);
    let there = mover::Mover::new((&memory_a, &a.tx, features), (&memory_b, &b.rx, features));
    let back = mover::Mover::new((&memory_b, &b.tx, features), (&memory_a, &a.rx, features));
    let wire = Wire {
        a,
        b,
        introduce: false,
    };
    Ok((wire, [there, back]))
}

/// The thread's life: works while it is told to, stands still otherwise. `work` says whether there was any.
fn obey(told: &AtomicU8, mut work: impl FnMut() -> bool) {
    loop {
        match told.load(Acquire) {
            RUN => {
                if !work() {
                    std::hint::spin_loop();
                }
            }
            END => return,
            _ => {
                // Fails if the order has changed again, which the next turn sees.
                let _ = told.compare_exchange(STAND, STANDS, AcqRel, Relaxed);
                std::thread::park();
            }
        }
    }
}

impl Contestant for Mover {
    fn name(&self) -> &'static str {
        "mover"
    }

    fn describe(&self) -> String {
        "one copy from ring to ring, no switching, in the generator's process".into()
    }

    fn stop(&mut self) -> Result<()> {
        self.tell(STAND);
        let until = Instant::now() + LIMIT;
        while self.state.load(Acquire) != STANDS {
            if Instant::now() > until {
                return Err(self.explain(Error::Held(LIMIT.as_secs())));
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    fn resume(&mut self) -> Result<()> {
        self.tell(RUN);
        Ok(())
    }

    fn wire(&mut self) -> &mut Wire {
        &mut self.wire
    }

    fn tasks(&self) -> Vec<PathBuf> {
        vec![self.task.clone()]
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        self.tell(END);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
