//! How bytes are cut into descriptors.

use super::split::Piece;

/// The way header and frame are cut into the descriptors of a chain, and how those lie in memory.
///
/// The cut is over header and frame together: `cuts(&[12])` is "header in its own descriptor", `cuts(&[5, 7, 0, 20])`
/// splits the header, adds an empty descriptor, then 20 bytes of frame; the last descriptor takes the rest. Pieces lie
/// apart in memory and in reverse order, so that nobody gets away with reading on past the end of a piece.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Shape {
    cuts: Vec<u32>,
    every: Option<u32>,
    indirect: bool,
}

/// Unused bytes between two pieces.
const GAP: u32 = 64;

impl Shape {
    /// Everything in one descriptor.
    pub fn joined() -> Self {
        Self::default()
    }

    /// Header (of 12 bytes) and frame in a descriptor each.
    pub fn separate() -> Self {
        Self::cuts(&[12])
    }

    /// Pieces of the given sizes (0 allowed), and one more for the rest, if any.
    pub fn cuts(sizes: &[u32]) -> Self {
        Self {
            cuts: sizes.to_vec(),
            ..Self::default()
        }
    }

    /// After the pieces given so far, equal pieces of `size` bytes.
    #[must_use]
    pub fn then_every(mut self, size: u32) -> Self {
        self.every = Some(size.max(1));
        self
    }

    /// In an indirect table (takes effect only if that was negotiated).
    #[must_use]
    pub fn indirect(mut self) -> Self {
        self.indirect = true;
        self
    }

    /// Whether an indirect table is wanted.
    pub fn is_indirect(&self) -> bool {
        self.indirect
    }

    pub(super) fn is_single(&self) -> bool {
        self.cuts.is_empty() && self.every.is_none()
    }

    /// Cuts `len` bytes in storage at guest address `base` into `pieces`. Returns the storage needed.
    pub(super) fn cut(&self, base: u64, len: u32, pieces: &mut Vec<Piece>) -> u32 {
        pieces.clear();
        let mut rest = len;
        let mut sizes = self.cuts.iter().copied();
        loop {
            let size = match sizes.next() {
                Some(size) => size.min(rest),
                None if rest == 0 && !pieces.is_empty() => break,
                None => self.every.map_or(rest, |every| every.min(rest)),
            };
            pieces.push(Piece { addr: 0, len: size });
            rest -= size;
        }
        if pieces.len() == 1 {
            pieces[0].addr = base;
            return len;
        }
        let mut at = 0;
        for piece in pieces.iter_mut().rev() {
            piece.addr = base + u64::from(at);
            at += piece.len + GAP;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(shape: &Shape, len: u32) -> Vec<u32> {
        let mut pieces = Vec::new();
        shape.cut(0, len, &mut pieces);
        pieces.iter().map(|p| p.len).collect()
    }

    #[test]
    fn cuts_cover_the_bytes() {
        assert_eq!(sizes(&Shape::joined(), 76), [76]);
        assert_eq!(sizes(&Shape::separate(), 76), [12, 64]);
        assert_eq!(sizes(&Shape::cuts(&[5, 7, 0, 20]), 76), [5, 7, 0, 20, 44]);
        assert_eq!(
            sizes(&Shape::cuts(&[12]).then_every(30), 76),
            [12, 30, 30, 4]
        );
        assert_eq!(sizes(&Shape::cuts(&[100, 3]), 76), [76, 0]);
    }

    #[test]
    fn pieces_lie_apart_and_backwards() {
        let mut pieces = Vec::new();
        let room = Shape::cuts(&[12, 0, 9]).cut(1000, 50, &mut pieces);
        assert!(
            pieces
                .windows(2)
                .all(|w| w[0].addr > w[1].addr + u64::from(w[1].len))
        );
        assert!(
            pieces
                .iter()
                .all(|p| p.addr + u64::from(p.len) <= 1000 + u64::from(room))
        );
    }
}
