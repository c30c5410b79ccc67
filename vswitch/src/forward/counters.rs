//! Counters, and the names of everything that can go wrong with a frame.
//!
//! Each worker counts into lines of its own; readers add up. Three sums hold at rest, and the tests hold every run to
//! them:
//!
//! - per input, `received = switched + drops by name`;
//! - per output, `offered = delivered + drops by name`;
//! - over the switch, `copies = sum of offered`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vswitch_vhost::ChainError;

/// A list of reasons, as an enum that indexes an array of counters.
macro_rules! reasons {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident => $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum $name { $($(#[$vmeta])* $variant,)* }

        impl $name {
            /// Every reason, in the order of the counters.
            pub const ALL: &[$name] = &[$($name::$variant,)*];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();
            /// The name people see.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }
    };
}

reasons! {
    /// Why a frame was not taken into the switch. Counted at the port it came from.
    InputDrop {
        /// A buffer lies outside the guest's memory.
        ChainUnmapped => "descriptor-unmapped",
        /// A descriptor's next index is outside its table.
        ChainNextOutOfRange => "descriptor-next-out-of-range",
        /// A descriptor chain is a loop, or longer than its ring.
        ChainLoop => "descriptor-loop",
        /// An indirect descriptor where none may be.
        ChainIndirectMisplaced => "descriptor-indirect-misplaced",
        /// An indirect table's length is no sensible number of descriptors.
        ChainIndirectLength => "descriptor-indirect-length",
        /// A device-writable buffer in a transmit queue.
        ChainWritable => "descriptor-writable",
        /// A device-readable buffer in a receive queue.
        ChainReadOnly => "descriptor-read-only",
        /// A buffer too short for the virtio-net header.
        ChainShort => "buffer-short",
        /// A virtio-net header without a frame.
        ChainEmpty => "buffer-empty",
        /// A frame longer than any frame may be.
        ChainTooLong => "buffer-too-long",
        /// A frame in more pieces than are looked at.
        ChainTooManyPieces => "buffer-too-many-pieces",
        /// The guest has the queue disabled.
        QueueDisabled => "queue-disabled",
        /// The port is administratively down.
        PortDown => "port-down",
        /// Shorter than an Ethernet header.
        Runt => "runt",
        /// Longer than the bridge's MTU allows.
        OverMtu => "over-mtu",
        /// The source address is a group address or zero.
        InvalidSource => "invalid-source",
        /// Reserved for the link itself (01:80:c2:00:00:00 to 0f): never forwarded by a bridge.
        LinkLocal => "link-local",
        /// The port does not take this VLAN.
        VlanNotAllowed => "vlan-not-allowed",
        /// The offload request in the virtio-net header contradicts the frame.
        BadOffload => "bad-offload",
        /// The destination is behind the port the frame came from.
        Reflection => "reflection",
        /// No other port carries the frame's VLAN.
        NoOutput => "no-output",
    }
}

impl From<ChainError> for InputDrop {
    fn from(error: ChainError) -> Self {
        match error {
            ChainError::Unmapped => InputDrop::ChainUnmapped,
            ChainError::NextOutOfRange => InputDrop::ChainNextOutOfRange,
            ChainError::Loop => InputDrop::ChainLoop,
            ChainError::IndirectMisplaced => InputDrop::ChainIndirectMisplaced,
            ChainError::IndirectLength => InputDrop::ChainIndirectLength,
            ChainError::Writable => InputDrop::ChainWritable,
            ChainError::ReadOnly => InputDrop::ChainReadOnly,
            ChainError::Short => InputDrop::ChainShort,
            ChainError::Empty => InputDrop::ChainEmpty,
            ChainError::TooLong => InputDrop::ChainTooLong,
            ChainError::TooManyPieces => InputDrop::ChainTooManyPieces,
        }
    }
}

reasons! {
    /// Why a frame was not delivered. Counted at the port it should have left by.
    OutputDrop {
        /// Nobody is attached, or the guest has not started the queue.
        NotConnected => "not-connected",
        /// The port is administratively down.
        AdminDown => "port-down",
        /// Its tag would come off and leave a second one that the sender chose.
        DoubleTagged => "double-tagged",
        /// The receiver has no free buffer.
        RingFull => "ring-full",
        /// The frame does not fit the receiver's buffer, and it did not negotiate merging them.
        BufferTooSmall => "buffer-too-small",
        /// The receiver's descriptor chain breaks the virtio rules.
        MalformedBuffer => "malformed-buffer",
        /// The receiver's ring lied about its indices and was stopped.
        RingBroken => "ring-broken",
        /// Software could not finish what the sender left to offloads.
        OffloadFailed => "offload-failed",
        /// The frame does not fit what the NIC can send.
        FrameTooLarge => "frame-too-large",
        /// No packet buffer was left for the NIC.
        NoMbuf => "no-mbuf",
        /// The NIC's transmit queue is full.
        NicQueueFull => "nic-queue-full",
    }
}

/// A counter with one writer, and readers that may be late.
#[derive(Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `n`; for the one writer only.
    #[inline]
    pub fn add(&self, n: u64) {
        // Not fetch_add: there is one writer, and a locked instruction a packet is what we are here to avoid.
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(n),
            Ordering::Relaxed,
        );
    }
    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one worker counts about one port.
#[repr(align(128))]
pub struct PortCounters {
    /// Frames taken from the port.
    pub received: Count,
    /// Their bytes, without the virtio header.
    pub received_bytes: Count,
    /// Frames that went to at least one output.
    pub switched: Count,
    /// Copies made of them: one per output.
    pub copies: Count,
    /// Frames dropped at input, by [`InputDrop`].
    pub input_drops: [Count; InputDrop::COUNT],
    /// Frames that were to leave by the port.
    pub offered: Count,
    /// Frames that did.
    pub delivered: Count,
    /// Their bytes.
    pub delivered_bytes: Count,
    /// Packets that did: more than frames where software cut them into segments.
    pub delivered_packets: Count,
    /// Frames dropped at output, by [`OutputDrop`].
    pub output_drops: [Count; OutputDrop::COUNT],
    /// Interrupts sent to the guest for received frames.
    pub rx_calls: Count,
    /// Interrupts sent to the guest for transmitted buffers.
    pub tx_calls: Count,
}

impl Default for PortCounters {
    fn default() -> Self {
        PortCounters {
            received: Count::default(),
            received_bytes: Count::default(),
            switched: Count::default(),
            copies: Count::default(),
            input_drops: std::array::from_fn(|_| Count::default()),
            offered: Count::default(),
            delivered: Count::default(),
            delivered_bytes: Count::default(),
            delivered_packets: Count::default(),
            output_drops: std::array::from_fn(|_| Count::default()),
            rx_calls: Count::default(),
            tx_calls: Count::default(),
        }
    }
}

impl PortCounters {
    /// One frame dropped at input.
    #[inline]
    pub fn drop_input(&self, reason: InputDrop) {
        if let Some(c) = self.input_drops.get(reason as usize) {
            c.add(1);
        }
    }
    /// `n` frames dropped at output.
    #[inline]
    pub fn drop_output(&self, reason: OutputDrop, n: u64) {
        if let Some(c) = self.output_drops.get(reason as usize) {
            c.add(n);
        }
    }
}

/// Counters of all workers, added up.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Totals {
    /// Frames taken from the port.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames that went somewhere.
    pub switched: u64,
    /// Copies made.
    pub copies: u64,
    /// Frames dropped at input, in the order of [`InputDrop::ALL`].
    pub input_drops: [u64; InputDrop::COUNT],
    /// Frames that were to leave.
    pub offered: u64,
    /// Frames that left.
    pub delivered: u64,
    /// Their bytes.
    pub delivered_bytes: u64,
    /// Packets that left.
    pub delivered_packets: u64,
    /// Frames dropped at output, in the order of [`OutputDrop::ALL`].
    pub output_drops: [u64; OutputDrop::COUNT],
    /// Receive interrupts.
    pub rx_calls: u64,
    /// Transmit interrupts.
    pub tx_calls: u64,
}

impl Totals {
    /// Adds up what each worker counted.
    pub fn of<'a>(workers: impl IntoIterator<Item = &'a Arc<PortCounters>>) -> Self {
        let mut t = Totals::default();
        for c in workers {
            // Outcomes before inputs: a reader that races a worker sees no more outcomes than frames.
            t.switched += c.switched.get();
            t.copies += c.copies.get();
            for (sum, n) in t.input_drops.iter_mut().zip(&c.input_drops) {
                *sum += n.get();
            }
            t.received += c.received.get();
            t.received_bytes += c.received_bytes.get();
            t.delivered += c.delivered.get();
            t.delivered_bytes += c.delivered_bytes.get();
            t.delivered_packets += c.delivered_packets.get();
            for (sum, n) in t.output_drops.iter_mut().zip(&c.output_drops) {
                *sum += n.get();
            }
            t.offered += c.offered.get();
            t.rx_calls += c.rx_calls.get();
            t.tx_calls += c.tx_calls.get();
        }
        t
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_index_their_own_counter() {
        for (i, reason) in InputDrop::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
        }
        for (i, reason) in OutputDrop::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
        }
    }

    #[test]
    fn malformed_chains_keep_their_names() {
        for error in ChainError::ALL {
            assert_eq!(InputDrop::from(error).name(), error.name());
        }
    }

    #[test]
    fn workers_add_up() {
        let (a, b) = (
            Arc::new(PortCounters::default()),
            Arc::new(PortCounters::default()),
        );
        a.received.add(3);
        b.received.add(4);
        b.drop_input(InputDrop::Runt);
        let t = Totals::of([&a, &b]);
        assert_eq!(t.received, 7);
        assert_eq!(t.input_drops[InputDrop::Runt as usize], 1);
    }
}
