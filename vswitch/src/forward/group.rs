//! Files the frames of a burst under their outputs, in arrival order, without sorting.
//!
//! A frame is a bit of its output's word, so filing a run of frames is one operation, order is that of the bits, and
//! nothing is copied to pass a group on. How heads change on the way is one value for nearly all groups; only a group
//! whose frames differ in that keeps one for each.

use vswitch_packet::HeadEdit;

use super::BURST;
use super::snapshot::OutputIndex;

/// A frame of the burst, as one output gets it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Filed {
    /// Its place in the burst.
    pub frame: u8,
    /// How its head changes on the way.
    pub edit: HeadEdit,
}

/// The frames of one output, a bit for each place in the burst.
#[derive(Clone, Copy, Default)]
pub struct Group {
    frames: u32,
    /// Of all of them, unless they differ.
    edit: HeadEdit,
    differ: bool,
}

/// Edits of frames that differ in them, by place in the burst.
type Edits = [HeadEdit; BURST];

/// A group as it is delivered.
#[derive(Clone, Copy)]
pub struct List<'a> {
    group: Group,
    edits: &'a Edits,
}

#[expect(
    clippy::len_without_is_empty,
    reason = "an output that holds nothing is not delivered to"
)]
impl<'a> List<'a> {
    /// How many frames there are.
    #[inline]
    pub fn len(self) -> usize {
        self.group.frames.count_ones() as usize
    }

    /// A list for each frame, in arrival order.
    pub fn each(self) -> impl Iterator<Item = List<'a>> {
        let List { group, edits } = self;
        self.iter().map(move |filed| {
            let frames = 1 << filed.frame;
            let group = Group { frames, ..group };
            List { group, edits }
        })
    }

    /// The frames in arrival order.
    #[inline]
    pub fn iter(self) -> impl Iterator<Item = Filed> + 'a {
        let mut left = self.group.frames;
        std::iter::from_fn(move || {
            let frame = (left != 0).then(|| left.trailing_zeros() as u8)?;
            left &= left - 1;
            let edit = if self.group.differ {
                self.edits[usize::from(frame) % BURST]
            } else {
                self.group.edit
            };
            Some(Filed { frame, edit })
        })
    }
}

/// A group on its own.
#[derive(Clone, Copy)]
pub struct Kept {
    group: Group,
    edits: Edits,
}

impl Kept {
    /// No frames.
    pub const NONE: Self = Kept {
        group: Group {
            frames: 0,
            edit: HeadEdit::None,
            differ: false,
        },
        edits: [HeadEdit::None; BURST],
    };

    /// Becomes this one.
    #[inline]
    pub fn set(&mut self, list: List<'_>) {
        self.group = list.group;
        if list.group.differ {
            self.edits = *list.edits;
        }
    }

    /// Its frames, a bit each.
    #[inline]
    pub fn frames(&self) -> u32 {
        self.group.frames
    }

    /// Its frames.
    #[inline]
    pub fn list(&self) -> List<'_> {
        List {
            group: self.group,
            edits: &self.edits,
        }
    }
}

/// A group for every output, and which of them hold something.
#[derive(Default)]
pub struct Groups {
    groups: Vec<Group>,
    edits: Vec<Edits>,
    touched: Vec<OutputIndex>,
}

impl Groups {
    /// Makes room for this many outputs. Allocates only when a snapshot has more outputs than any before it.
    pub fn reserve(&mut self, outputs: usize) {
        if self.groups.len() < outputs {
            self.groups.resize(outputs, Group::default());
            self.edits.resize(outputs, [HeadEdit::None; BURST]);
            self.touched.reserve(outputs);
        }
    }

    /// Files frames, bits of `frames`, whose heads change in the same way. An output gets each frame once at most.
    #[inline]
    pub fn file(&mut self, output: OutputIndex, frames: u32, edit: HeadEdit) -> bool {
        let Some(group) = self.groups.get_mut(output.0 as usize) else {
            return false;
        };
        if group.frames == 0 {
            self.touched.push(output);
            *group = Group {
                frames,
                edit,
                differ: false,
            };
        } else if group.edit == edit && !group.differ {
            group.frames |= frames;
        } else {
            self.file_other(output, frames, edit);
        }
        true
    }

    /// Files frames whose heads change in another way than those that are there.
    #[cold]
    fn file_other(&mut self, output: OutputIndex, frames: u32, edit: HeadEdit) {
        let at = output.0 as usize;
        if let (Some(group), Some(edits)) = (self.groups.get_mut(at), self.edits.get_mut(at)) {
            if !group.differ {
                edits.fill(group.edit);
                group.differ = true;
            }
            for (place, kept) in edits.iter_mut().enumerate() {
                if frames >> place & 1 != 0 {
                    *kept = edit;
                }
            }
            group.frames |= frames;
        }
    }

    /// The next output that holds frames; it is empty afterwards.
    #[inline]
    pub fn pop(&mut self) -> Option<(OutputIndex, Group)> {
        let output = self.touched.pop()?;
        let group = self.groups.get_mut(output.0 as usize)?;
        Some((output, std::mem::take(group)))
    }

    /// Takes out the groups of the outputs that are `wanted`, and hands each to `to`, with its edits.
    #[inline]
    pub fn take_those(
        &mut self,
        wanted: impl Fn(OutputIndex) -> bool,
        mut to: impl FnMut(OutputIndex, List<'_>),
    ) {
        let (groups, edits) = (&mut self.groups, &self.edits);
        self.touched.retain(|&output| {
            let at = output.0 as usize;
            let (true, Some(group), Some(edits)) =
                (wanted(output), groups.get_mut(at), edits.get(at))
            else {
                return true;
            };
            let group = std::mem::take(group);
            to(output, List { group, edits });
            false
        });
    }

    /// The outputs that hold frames, and how many each.
    pub fn held(&self) -> impl Iterator<Item = (OutputIndex, usize)> {
        let group = |output: &OutputIndex| self.groups.get(output.0 as usize);
        let held = self.touched.iter();
        held.filter_map(move |o| Some((*o, group(o)?.frames.count_ones() as usize)))
    }

    /// A group that was just [popped](Self::pop), with its edits.
    #[inline]
    pub fn list(&self, output: OutputIndex, group: Group) -> List<'_> {
        const NONE: &Edits = &[HeadEdit::None; BURST];
        List {
            group,
            edits: self.edits.get(output.0 as usize).unwrap_or(NONE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn emptied(groups: &mut Groups) -> Vec<(u32, Vec<Filed>)> {
        let mut all = Vec::new();
        while let Some((output, group)) = groups.pop() {
            all.push((output.0, groups.list(output, group).iter().collect()));
        }
        all.sort_by_key(|(output, _)| *output);
        all
    }

    #[test]
    fn keeps_arrival_order_within_an_output() {
        let mut g = Groups::default();
        g.reserve(3);
        for frame in 0..BURST as u32 {
            assert!(g.file(OutputIndex(frame % 2 * 2), 1 << frame, HeadEdit::None));
        }
        assert!(!g.file(OutputIndex(3), 1, HeadEdit::None));
        for (output, list) in emptied(&mut g) {
            let frames: Vec<_> = list.iter().map(|f| u32::from(f.frame)).collect();
            let want: Vec<_> = (0..32).filter(|f| f % 2 * 2 == output).collect();
            assert_eq!(frames, want);
        }
        assert!(g.pop().is_none());
    }

    #[test]
    fn each_frame_keeps_its_own_edit() {
        let edits = [HeadEdit::Pop, HeadEdit::Push(7), HeadEdit::None];
        let mut g = Groups::default();
        g.reserve(1);
        for round in 0..3 {
            for frame in 0..BURST {
                let edit = edits[(frame + round) % 3];
                assert!(g.file(OutputIndex(0), 1 << frame, edit));
            }
            let all = emptied(&mut g);
            for filed in &all[0].1 {
                let want = edits[(usize::from(filed.frame) + round) % 3];
                assert_eq!(filed.edit, want);
            }
            assert_eq!(all[0].1.len(), BURST);
        }
        g.file(OutputIndex(0), 0xffff_ffff, HeadEdit::Pop);
        let all = emptied(&mut g);
        assert!(all[0].1.iter().all(|f| f.edit == HeadEdit::Pop));
    }
}
