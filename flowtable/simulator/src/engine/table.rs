//! Where buckets are, where they belong, and when they may go there.

use vswitch_flowtable::{Indirection, Target};

use super::Gate;

/// The table with what is under way.
pub(super) struct Table {
    /// Where packets go now.
    owners: Vec<u16>,
    /// Where they shall go; the same unless a move is pending.
    wanted: Vec<u16>,
    /// The number of the last packet that its worker was given for the bucket.
    tails: Vec<u64>,
    /// What must be completed before a packet of the bucket may be taken.
    gates: Vec<Option<Gate>>,
    /// Buckets whose move is pending.
    pending: Vec<u32>,
    held: Vec<usize>,
}

impl Table {
    /// Spread evenly over the workers: as the switch's table does, or in turn if another size is asked for.
    pub(super) fn new(workers: u16, entries: Option<usize>) -> Self {
        let owners: Vec<u16> = match entries {
            Some(entries) => (0..entries)
                .map(|one| (one % usize::from(workers)) as u16)
                .collect(),
            None => {
                let mut table = Indirection::new(workers);
                for worker in 0..workers {
                    table.add(Target(worker));
                }
                let owner = |bucket| table.select(bucket).map_or(0, |target| target.0);
                (0..table.buckets() as u32).map(owner).collect()
            }
        };
        let mut held = vec![0; usize::from(workers)];
        for owner in &owners {
            held[usize::from(*owner)] += 1;
        }
        Self {
            wanted: owners.clone(),
            tails: vec![0; owners.len()],
            gates: vec![None; owners.len()],
            pending: Vec::new(),
            held,
            owners,
        }
    }

    pub(super) fn entries(&self) -> usize {
        self.owners.len()
    }

    /// Sizes are powers of two.
    pub(super) fn bucket(&self, hash: u32) -> usize {
        hash as usize & (self.owners.len() - 1)
    }

    pub(super) fn owner(&self, bucket: usize) -> usize {
        usize::from(self.owners[bucket])
    }

    pub(super) fn wanted(&self) -> &[u16] {
        &self.wanted
    }

    /// Buckets that this worker is given packets for.
    pub(super) fn held(&self, worker: usize) -> usize {
        self.held[worker]
    }

    /// The bucket's worker was given its packet of this number for it.
    pub(super) fn given(&mut self, bucket: usize, number: u64) {
        self.tails[bucket] = number;
    }

    pub(super) fn want(&mut self, bucket: usize, worker: u16) {
        let was = self.wanted[bucket] != self.owners[bucket];
        self.wanted[bucket] = worker;
        match (was, worker != self.owners[bucket]) {
            (false, true) => self.pending.push(bucket as u32),
            (true, false) => self.pending.retain(|one| *one as usize != bucket),
            _ => {}
        }
    }

    /// The worker that the bucket is to leave, if it is.
    pub(super) fn leaves(&self, bucket: usize) -> Option<usize> {
        (self.wanted[bucket] != self.owners[bucket]).then(|| self.owner(bucket))
    }

    /// The bucket at this place among those whose move is pending.
    pub(super) fn pending(&self, place: usize) -> Option<usize> {
        self.pending.get(place).map(|bucket| *bucket as usize)
    }

    /// Whether its worker, which has completed so many packets, has completed the bucket's last.
    pub(super) fn may_move(&self, bucket: usize, completed: u64) -> bool {
        completed >= self.tails[bucket]
    }

    pub(super) fn gate(&self, bucket: usize) -> Option<Gate> {
        self.gates[bucket]
    }

    /// Moves the bucket to where it is wanted; with a gate, if its worker may not have completed its packets.
    pub(super) fn make(&mut self, bucket: usize, gated: bool) {
        // A worker that was given nothing for it leaves the gate before.
        if gated && self.tails[bucket] > 0 {
            self.gates[bucket] = Some((self.owners[bucket], self.tails[bucket]));
        }
        self.held[usize::from(self.owners[bucket])] -= 1;
        self.held[usize::from(self.wanted[bucket])] += 1;
        self.owners[bucket] = self.wanted[bucket];
        // The new worker has been given nothing for it yet.
        self.tails[bucket] = 0;
        self.pending.retain(|one| *one as usize != bucket);
    }
}
