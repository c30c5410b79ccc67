//! The `virtio-queue` crate as the oracle: over the same memory it and we must find the same chains.

use std::io::Read;

use proptest::prelude::*;
use virtio_queue::{Queue as TheirQueue, QueueOwnedT, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::tx::TxScratch;
use super::{ChainError, MAX_BURST};
use crate::features::{RING_INDIRECT_DESC, VERSION_1, mask};
use crate::testing::{Guest, INDIRECT, NEXT, Queue, setup};

const SIZE: u16 = 64;
const MEMORY: u64 = 0x8_0000;
/// Two regions meet in the middle of where buffers are.
const SEAM: u64 = 0x4_0000;
const TABLES: u64 = 0x1_0000;

/// One chain as the driver writes it: its buffers, and whether they are in an indirect table.
#[derive(Clone, Debug)]
struct Chain {
    buffers: Vec<(u64, u32)>,
    indirect: bool,
}

fn chains() -> impl Strategy<Value = Vec<Chain>> {
    let buffer = (
        0x2_0000u64..0x6_0000,
        prop_oneof![Just(0u32), 1u32..64, 64u32..3000],
    );
    let near_seam = (SEAM - 40..SEAM, 0u32..200);
    let chain = (
        prop::collection::vec(prop_oneof![3 => buffer, 1 => near_seam], 1..6),
        any::<bool>(),
    )
        .prop_map(|(buffers, indirect)| Chain { buffers, indirect });
    prop::collection::vec(chain, 1..10)
}

/// Writes the chains and offers them; says where each begins.
fn offer(guest: &Guest, queue: &mut Queue, chains: &[Chain]) {
    let mut at = 0;
    for (number, chain) in chains.iter().enumerate() {
        let table = TABLES + number as u64 * 0x100;
        let last = chain.buffers.len() - 1;
        let head = at;
        for (index, (addr, len)) in chain.buffers.iter().enumerate() {
            let flags = if index < last { NEXT } else { 0 };
            if chain.indirect {
                guest.descriptor(
                    table + 16 * index as u64,
                    *addr,
                    *len,
                    flags,
                    index as u16 + 1,
                );
            } else {
                queue.descriptor(guest, at, *addr, *len, flags, at + 1);
                at += 1;
            }
        }
        if chain.indirect {
            let len = 16 * chain.buffers.len() as u32;
            queue.descriptor(guest, at, table, len, INDIRECT, 0);
            at += 1;
        }
        queue.offer(guest, head);
    }
}

fn oracle(guest: &Guest, queue: &Queue, start: u16) -> (TheirQueue, GuestMemoryMmap) {
    let file = |at| Some(FileOffset::new(guest.file.try_clone().unwrap(), at));
    let memory = GuestMemoryMmap::from_ranges_with_files([
        (GuestAddress(0), SEAM as usize, file(0)),
        (GuestAddress(SEAM), (MEMORY - SEAM) as usize, file(SEAM)),
    ])
    .unwrap();
    let mut theirs = TheirQueue::new(SIZE).unwrap();
    theirs.set_size(SIZE);
    theirs
        .try_set_desc_table_address(GuestAddress(queue.at))
        .unwrap();
    theirs
        .try_set_avail_ring_address(GuestAddress(queue.available()))
        .unwrap();
    theirs
        .try_set_used_ring_address(GuestAddress(queue.used()))
        .unwrap();
    theirs.set_next_avail(start);
    theirs.set_next_used(start);
    theirs.set_ready(true);
    (theirs, memory)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_virtio_queue_reads_we_read(
        rounds in prop::collection::vec(chains(), 1..4),
        start: u16,
        seed: u8,
    ) {
        let guest = Guest::new(MEMORY);
        let noise: Vec<u8> = (0..MEMORY).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8 ^ seed).collect();
        guest.write(0x2_0000, &noise[0x2_0000..]);
        let mut queue = Queue::starting_at(&guest, 0x1000, SIZE, start);
        let (mut theirs, memory) = oracle(&guest, &queue, start);
        let features = mask(VERSION_1) | mask(RING_INDIRECT_DESC);
        let mut ours = super::TxRing::start(setup(&guest.memory(&[SEAM]), &queue, features)).unwrap();
        let mut scratch = TxScratch::new();

        for chains in rounds {
            offer(&guest, &mut queue, &chains);
            let mut expected = Vec::new();
            for chain in theirs.iter(&memory).unwrap() {
                let head = chain.head_index();
                let mut bytes = Vec::new();
                chain.reader(&memory).unwrap().read_to_end(&mut bytes).unwrap();
                expected.push((head, bytes));
            }
            let burst = ours.take(&mut scratch, MAX_BURST).unwrap();
            prop_assert_eq!(burst.len(), expected.len());
            for (frame, (_, bytes)) in burst.iter().zip(&expected) {
                match frame {
                    Err(ChainError::Short) => prop_assert!(bytes.len() < 12),
                    Err(ChainError::Empty) => prop_assert_eq!(bytes.len(), 12),
                    Err(other) => prop_assert!(false, "{}", other),
                    Ok(frame) => {
                        let mut read = frame.header.to_bytes().to_vec();
                        read.extend(frame.head);
                        let mut tail = vec![0; frame.tail.len()];
                        frame.tail.copy_to(0, &mut tail);
                        read.extend(tail);
                        prop_assert_eq!(&read, bytes);
                    }
                }
            }
            ours.complete();
            let returned: Vec<u32> = queue.take_used(&guest).iter().map(|(head, _)| *head).collect();
            let heads: Vec<u32> = expected.iter().map(|(head, _)| u32::from(*head)).collect();
            prop_assert_eq!(returned, heads);
            prop_assert_eq!(ours.settle(), u32::from(theirs.next_avail()));
        }
    }
}
