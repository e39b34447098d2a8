//! A call's range, cut into requests of which several run at a time.

use crate::error::{ErrorKind, RequestError};

/// Requests of one call that are under way at a time, unless the arena has fewer buffers.
const PIECES_MAX: usize = 16;

/// A part of a call's range.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) start: usize,
    pub(super) length: usize,
}

/// The pieces of a call that are to be started or under way.
#[derive(Debug)]
pub(super) struct Pieces {
    total: usize,
    piece_bytes: usize,
    started: usize,
    again: Vec<Piece>,
    /// By token.
    running: Vec<Option<Piece>>,
    outstanding: usize,
    outstanding_max: usize,
}

impl Pieces {
    pub(super) fn new(total: usize, piece_bytes: usize) -> Pieces {
        Pieces {
            total,
            piece_bytes,
            started: 0,
            again: Vec::new(),
            running: Vec::new(),
            outstanding: 0,
            outstanding_max: PIECES_MAX,
        }
    }

    /// Lets no piece run beside another.
    pub(super) fn one_by_one(self) -> Pieces {
        Pieces { outstanding_max: 1, ..self }
    }

    /// Whether nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.outstanding == 0
    }

    /// The next piece to start, if one begins before `end` and may run beside the others.
    pub(super) fn next(&mut self, end: usize) -> Option<Piece> {
        if self.outstanding >= self.outstanding_max {
            return None;
        }
        while let Some(piece) = self.again.pop() {
            if piece.start < end {
                return Some(piece);
            }
        }
        if self.started >= end.min(self.total) {
            return None;
        }
        let start = self.started;
        let length = self.piece_bytes.min(self.total - start);
        self.started += length;
        Some(Piece { start, length })
    }

    pub(super) fn again(&mut self, piece: Piece) {
        self.again.push(piece);
    }

    /// The arena is empty: wait for a piece under way, or fail if there is none.
    pub(super) fn no_buffer(
        &mut self,
        piece: Piece,
        operation: &'static str,
    ) -> Result<(), RequestError> {
        if self.outstanding == 0 {
            let kind = ErrorKind::Memory("no buffer of the session's arena is free");
            return Err(RequestError::new(operation, kind));
        }
        self.again.push(piece);
        self.outstanding_max = self.outstanding;
        Ok(())
    }

    pub(super) fn put(&mut self, piece: Piece) -> u64 {
        self.outstanding += 1;
        let token = match self.running.iter().position(Option::is_none) {
            Some(free) => free,
            None => {
                self.running.push(None);
                self.running.len() - 1
            }
        };
        self.running[token] = Some(piece);
        token as u64
    }

    pub(super) fn take(&mut self, token: u64) -> Option<Piece> {
        let piece = self.running.get_mut(usize::try_from(token).ok()?)?.take()?;
        self.outstanding -= 1;
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_the_range_once() {
        let mut pieces = Pieces::new(10, 4);
        let mut covered = [0; 10];
        while let Some(piece) = pieces.next(10) {
            covered[piece.start..piece.start + piece.length].iter_mut().for_each(|c| *c += 1);
            let token = pieces.put(piece);
            if piece.start == 4 {
                // Came back short by one byte.
                assert!(pieces.take(token).is_some() && pieces.take(token).is_none());
                covered[7] -= 1;
                pieces.again(Piece { start: 7, length: 1 });
            }
        }
        assert_eq!(covered, [1; 10]);
        assert_eq!(pieces.outstanding, 3);
        let mut short = Pieces::new(100, 4);
        assert_eq!(short.next(100).map(|piece| piece.start), Some(0));
        assert!(short.next(4).is_none(), "nothing is started beyond the end");
    }
}
