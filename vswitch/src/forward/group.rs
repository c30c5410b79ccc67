//! Files the frames of a burst under their outputs, in arrival order, without sorting.

use arrayvec::ArrayVec;
use vswitch_packet::HeadEdit;

use super::BURST;
use super::snapshot::OutputIndex;

/// A frame of the burst, as one output gets it.
#[derive(Clone, Copy)]
pub struct Filed {
    /// Its place in the burst.
    pub frame: u8,
    /// How its head changes on the way.
    pub edit: HeadEdit,
}

/// The frames of one output.
pub type List = ArrayVec<Filed, BURST>;

/// A list for every output, and which of them hold something.
#[derive(Default)]
pub struct Groups {
    lists: Vec<List>,
    touched: Vec<OutputIndex>,
}

impl Groups {
    /// Makes room for this many outputs. Allocates only when a snapshot has more outputs than any before it.
    pub fn reserve(&mut self, outputs: usize) {
        if self.lists.len() < outputs {
            self.lists.resize_with(outputs, ArrayVec::new);
            self.touched.reserve(outputs);
        }
    }

    /// Files a frame. An output gets each frame once at most.
    #[inline(always)]
    pub fn file(&mut self, output: OutputIndex, filed: Filed) -> bool {
        let Some(list) = self.lists.get_mut(output.0 as usize) else {
            return false;
        };
        if list.is_empty() {
            self.touched.push(output);
        }
        list.try_push(filed).is_ok()
    }

    /// The next output that holds frames.
    #[inline]
    pub fn pop(&mut self) -> Option<OutputIndex> {
        self.touched.pop()
    }

    /// The frames of an output; it is empty afterwards.
    #[inline]
    pub fn take(&mut self, output: OutputIndex) -> List {
        let list = self.lists.get_mut(output.0 as usize);
        list.map(std::mem::take).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_arrival_order_within_an_output() {
        let mut g = Groups::default();
        g.reserve(3);
        for frame in 0..BURST as u8 {
            let output = OutputIndex(u32::from(frame) % 2 * 2);
            assert!(g.file(
                output,
                Filed {
                    frame,
                    edit: HeadEdit::None
                }
            ));
        }
        assert!(!g.file(
            OutputIndex(3),
            Filed {
                frame: 0,
                edit: HeadEdit::None
            }
        ));
        let mut seen = 0;
        while let Some(output) = g.pop() {
            let list = g.take(output);
            let frames: Vec<_> = list.iter().map(|f| f.frame).collect();
            assert!(frames.is_sorted() && frames.iter().all(|f| u32::from(f % 2 * 2) == output.0));
            seen += frames.len();
        }
        assert_eq!(seen, BURST);
    }
}
