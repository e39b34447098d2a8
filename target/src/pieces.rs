//! How a grant is cut into pieces, and the steps that a piece takes.
//!
//! A piece is a range of the host's bytes that goes one [`Way`]. Pieces of a grant are independent:
//! they may be under way together and end in any order. Cutting is a pure function of the grant and
//! the position reached, so nothing is remembered between the pieces but that position.

use gannet_proto::control::{Grant, grant_operation};
use gannet_proto::limits::BLOCK_BYTES;

/// How the bytes of a piece travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Between a store in memory and the host.
    Resident,
    /// Block I/O straight into or out of the host's memory.
    Direct,
    /// Through a buffer of the data server.
    Bounce,
    /// Zeros for the host.
    Zero,
}

/// A range of a grant's host bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) way: Way,
    /// First byte, counted from the start of the host's buffer.
    pub(crate) start: u32,
    pub(crate) len_bytes: u32,
}

/// What cutting depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) operation: u8,
    /// Bytes between the first block's start and the host's first byte.
    pub(crate) offset: u32,
    /// Bytes in the host's buffer.
    pub(crate) length: u32,
    /// Bytes of a read that come from the store.
    pub(crate) valid: u32,
    /// The store lies in memory.
    pub(crate) resident: bool,
    /// The blocks between the edges lie on block boundaries of host memory that block I/O reaches.
    pub(crate) direct: bool,
    /// Most bytes of a resident or zero piece.
    pub(crate) copy_bytes_max: u32,
    /// Most bytes of blocks that a bounced piece covers.
    pub(crate) bounce_bytes_max: u32,
}

impl Shape {
    /// The piece that starts at `start`; `None` at the end of the grant.
    pub(crate) fn piece(&self, start: u32) -> Option<Piece> {
        let from_store = match self.operation {
            grant_operation::READ => self.valid,
            grant_operation::WRITE => self.length,
            _ => 0,
        };
        if start >= self.length {
            return None;
        }
        if start >= from_store {
            let len_bytes = (self.length - start).min(self.copy_bytes_max);
            return Some(Piece { way: Way::Zero, start, len_bytes });
        }
        let left = from_store - start;
        if self.resident {
            let len_bytes = left.min(self.copy_bytes_max);
            return Some(Piece { way: Way::Resident, start, len_bytes });
        }
        let in_block = (self.offset + start) % BLOCK_BYTES;
        if self.direct && in_block == 0 && left >= BLOCK_BYTES {
            let len_bytes = left - left % BLOCK_BYTES;
            return Some(Piece { way: Way::Direct, start, len_bytes });
        }
        // With direct neighbours only the edge itself is bounced.
        let span = if self.direct { BLOCK_BYTES } else { self.bounce_bytes_max };
        let len_bytes = left.min(span - in_block);
        Some(Piece { way: Way::Bounce, start, len_bytes })
    }
}

/// The blocks that a piece covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cover {
    /// First block in the store.
    pub(crate) block: u64,
    /// Number of blocks.
    pub(crate) blocks: u32,
    /// Bytes between the first block's start and the piece's first byte.
    pub(crate) in_block: u32,
}

impl Cover {
    pub(crate) fn of(grant: &Grant, piece: Piece) -> Cover {
        let position = grant.offset.get() + piece.start;
        let in_block = position % BLOCK_BYTES;
        Cover {
            block: grant.block.get() + u64::from(position / BLOCK_BYTES),
            blocks: (in_block + piece.len_bytes).div_ceil(BLOCK_BYTES),
            in_block,
        }
    }

    pub(crate) fn len_bytes(self) -> usize {
        self.blocks as usize * BLOCK_BYTES as usize
    }
}

/// One transfer in the life of a piece: what is posted, or is to be posted next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Old content under the head of a write, from the store.
    Head,
    /// Old content under the tail of a write, from the store.
    Tail,
    /// Host's bytes into the data server's memory.
    Pull,
    /// Blocks into the store.
    Store,
    /// Blocks out of the store.
    Fetch,
    /// Bytes into the host's memory.
    Push,
}

/// Old content that a piece of a write has to merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edges {
    /// The piece starts inside its first block.
    pub(crate) head: bool,
    /// The piece ends inside its last block.
    pub(crate) tail: bool,
    /// The old block at the head has bytes that count.
    pub(crate) read_head: bool,
    /// The old block at the tail has bytes that count.
    pub(crate) read_tail: bool,
}

impl Edges {
    pub(crate) fn of(grant: &Grant, piece: Piece) -> Edges {
        let (offset, length) = (grant.offset.get(), grant.length.get());
        let end = end_in_block(grant);
        let head = piece.start == 0 && offset > 0;
        let tail = piece.start + piece.len_bytes == length && end > 0;
        let mut read_head =
            head && grant.head_block.get() != u64::MAX && grant.head_valid.get() > 0;
        let read_tail = tail && grant.tail_block.get() != u64::MAX && grant.tail_valid.get() > end;
        // A single block merged from a single old one is read once, as the tail.
        let one_block = offset + length <= BLOCK_BYTES;
        if read_tail && one_block && grant.head_block == grant.tail_block {
            read_head = false;
        }
        Edges { head, tail, read_head, read_tail }
    }
}

/// Where in the last block a grant ends; 0 at the block's end.
pub(crate) fn end_in_block(grant: &Grant) -> u32 {
    (grant.offset.get() + grant.length.get()) % BLOCK_BYTES
}

/// The step that follows `done` (`None`: the first one); `None` when the piece is complete.
pub(crate) fn step_after(
    operation: u8,
    way: Way,
    edges: Edges,
    done: Option<Step>,
) -> Option<Step> {
    if operation != grant_operation::WRITE {
        return match (way, done) {
            (Way::Direct | Way::Bounce, None) => Some(Step::Fetch),
            (Way::Resident | Way::Zero, None) | (Way::Bounce, Some(Step::Fetch)) => {
                Some(Step::Push)
            }
            _ => None,
        };
    }
    match (way, done) {
        (Way::Bounce, None) if edges.read_head => Some(Step::Head),
        (Way::Bounce, None | Some(Step::Head)) if edges.read_tail => Some(Step::Tail),
        (Way::Bounce, None | Some(Step::Head | Step::Tail)) | (Way::Resident, None) => {
            Some(Step::Pull)
        }
        (Way::Bounce, Some(Step::Pull)) | (Way::Direct, None) => Some(Step::Store),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gannet_proto::limits::REQUEST_BYTES_MAX;
    use proptest::prelude::*;
    use zerocopy::little_endian::{U32, U64};

    fn shape(operation: u8, offset: u32, length: u32, valid: u32) -> Shape {
        Shape {
            operation,
            offset,
            length,
            valid,
            resident: false,
            direct: false,
            copy_bytes_max: 65536,
            bounce_bytes_max: 262_144,
        }
    }

    proptest! {
        #[test]
        fn pieces_cover_every_byte_once_and_respect_blocks(
            operation in grant_operation::READ..=grant_operation::ZERO,
            offset in 0..BLOCK_BYTES,
            length in 1..=REQUEST_BYTES_MAX,
            valid_share in 0..=100u32,
            resident: bool,
            direct: bool,
        ) {
            let valid = (u64::from(length) * u64::from(valid_share) / 100) as u32;
            let shape = Shape { resident, direct, ..shape(operation, offset, length, valid) };
            let from_store = match operation {
                grant_operation::READ => valid,
                grant_operation::WRITE => length,
                _ => 0,
            };
            let mut position = 0;
            while let Some(piece) = shape.piece(position) {
                prop_assert_eq!(piece.start, position);
                prop_assert!(piece.len_bytes > 0);
                let end = position + piece.len_bytes;
                prop_assert_eq!(piece.way == Way::Zero, position >= from_store);
                prop_assert!(piece.way == Way::Zero || end <= from_store);
                if piece.way == Way::Direct {
                    prop_assert!(direct && (offset + position).is_multiple_of(BLOCK_BYTES));
                    prop_assert!(piece.len_bytes.is_multiple_of(BLOCK_BYTES));
                }
                if piece.way == Way::Bounce {
                    let in_block = (offset + position) % BLOCK_BYTES;
                    prop_assert!(in_block + piece.len_bytes <= shape.bounce_bytes_max);
                    // Two pieces of a write never share a block.
                    prop_assert!(end == from_store || (offset + end).is_multiple_of(BLOCK_BYTES));
                }
                position = end;
            }
            prop_assert_eq!(position, length);
        }
    }

    #[test]
    fn a_direct_grant_bounces_its_edges_only() {
        let shape = Shape { direct: true, ..shape(grant_operation::WRITE, 100, 20_000, 0) };
        let mut position = 0;
        let mut pieces = Vec::new();
        while let Some(piece) = shape.piece(position) {
            position += piece.len_bytes;
            pieces.push((piece.way, piece.len_bytes));
        }
        assert_eq!(pieces, [(Way::Bounce, 3996), (Way::Direct, 12_288), (Way::Bounce, 3716)]);
    }

    fn steps(operation: u8, way: Way, edges: Edges) -> Vec<Step> {
        let mut steps = Vec::new();
        while let Some(step) = step_after(operation, way, edges, steps.last().copied()) {
            steps.push(step);
        }
        steps
    }

    #[test]
    fn every_way_has_its_steps() {
        use Step::{Fetch, Head, Pull, Push, Store, Tail};
        let none = Edges { head: false, tail: false, read_head: false, read_tail: false };
        let head = Edges { read_head: true, ..none };
        let tail = Edges { read_tail: true, ..none };
        let both = Edges { read_head: true, read_tail: true, ..none };
        let (read, write, zero) =
            (grant_operation::READ, grant_operation::WRITE, grant_operation::ZERO);
        let table: [(u8, Way, Edges, &[Step]); 11] = [
            (read, Way::Resident, none, &[Push]),
            (read, Way::Direct, none, &[Fetch]),
            (read, Way::Bounce, none, &[Fetch, Push]),
            (read, Way::Zero, none, &[Push]),
            (zero, Way::Zero, none, &[Push]),
            (write, Way::Resident, both, &[Pull]),
            (write, Way::Direct, none, &[Store]),
            (write, Way::Bounce, none, &[Pull, Store]),
            (write, Way::Bounce, head, &[Head, Pull, Store]),
            (write, Way::Bounce, tail, &[Tail, Pull, Store]),
            (write, Way::Bounce, both, &[Head, Tail, Pull, Store]),
        ];
        for (operation, way, edges, expected) in table {
            assert_eq!(steps(operation, way, edges), expected, "{operation} {way:?} {edges:?}");
        }
    }

    #[test]
    fn old_blocks_are_read_where_they_count() {
        let grant = |offset, length, head: (u64, u32), tail: (u64, u32)| Grant {
            operation: grant_operation::WRITE,
            offset: U32::new(offset),
            length: U32::new(length),
            head_block: U64::new(head.0),
            head_valid: U32::new(head.1),
            tail_block: U64::new(tail.0),
            tail_valid: U32::new(tail.1),
            ..Grant::default()
        };
        let none = u64::MAX;
        let reads = |grant: &Grant| {
            let piece = Piece { way: Way::Bounce, start: 0, len_bytes: grant.length.get() };
            let edges = Edges::of(grant, piece);
            (edges.read_head, edges.read_tail)
        };
        assert_eq!(reads(&grant(0, 4096, (7, 4096), (7, 4096))), (false, false), "aligned");
        assert_eq!(reads(&grant(10, 20, (none, 0), (none, 0))), (false, false), "fresh");
        assert_eq!(reads(&grant(10, 20, (7, 4096), (7, 4096))), (false, true), "one block once");
        assert_eq!(reads(&grant(10, 20, (7, 4096), (8, 4096))), (true, true), "two old blocks");
        assert_eq!(reads(&grant(10, 20, (7, 30), (7, 30))), (true, false), "tail not valid");
        assert_eq!(reads(&grant(10, 5000, (7, 0), (8, 914))), (false, false), "nothing valid");
        assert_eq!(reads(&grant(10, 5000, (7, 1), (8, 915))), (true, true), "one byte valid");
    }

    #[test]
    fn covers_name_blocks_of_the_store() {
        let grant = Grant { block: U64::new(50), offset: U32::new(100), ..Grant::default() };
        let cover = Cover::of(&grant, Piece { way: Way::Bounce, start: 3996, len_bytes: 4097 });
        assert_eq!(cover, Cover { block: 51, blocks: 2, in_block: 0 });
        assert_eq!(cover.len_bytes(), 8192);
        let cover = Cover::of(&grant, Piece { way: Way::Bounce, start: 0, len_bytes: 3997 });
        assert_eq!(cover, Cover { block: 50, blocks: 2, in_block: 100 });
    }
}
