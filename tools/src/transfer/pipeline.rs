//! Many requests at once, each with a note of what it is for.
//!
//! The pipeline owns the buffers of reads and writes. A step says what to do with a completion; the
//! copying loops are written as reactions to completed steps.

use std::time::{Duration, Instant};

use gannet_client::{Completion, Operation, Outcome, RequestError};
use gannet_fabric::arena::HostBuffer;
use hdrhistogram::Histogram;

use crate::connection::{Connection, unexpected};
use crate::failure::Failure;

/// Bytes of a buffer, and so of the longest read or write.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// A finished step.
pub(super) struct Finished<S> {
    /// What it was for.
    pub(super) step: S,
    /// How it ended.
    pub(super) result: Result<Outcome, RequestError>,
    /// The buffer of a read or write.
    pub(super) buffer: Option<HostBuffer>,
}

struct Under<S> {
    step: S,
    begun: Instant,
    is_transfer: bool,
}

/// Requests under way on one connection.
pub(super) struct Pipeline<'a, S> {
    connection: &'a mut Connection,
    free: &'a mut Vec<HostBuffer>,
    /// By token.
    steps: Vec<Option<Under<S>>>,
    free_tokens: Vec<usize>,
    completions: Vec<Completion>,
    latencies: Histogram<u64>,
}

impl<'a, S> Pipeline<'a, S> {
    /// A pipeline over these buffers, which are there again when all requests have ended.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub(super) fn new(
        connection: &'a mut Connection,
        free: &'a mut Vec<HostBuffer>,
    ) -> Result<Pipeline<'a, S>, Failure> {
        let latencies = Histogram::new_with_bounds(1, 600_000_000_000, 3)
            .map_err(|error| Failure::operation(format!("a histogram: {error}")))?;
        Ok(Pipeline {
            connection,
            free,
            steps: Vec::new(),
            free_tokens: Vec::new(),
            completions: Vec::new(),
            latencies,
        })
    }

    /// Takes a buffer that no request uses.
    pub(super) fn take_buffer(&mut self) -> Option<HostBuffer> {
        self.free.pop()
    }

    /// Gives a buffer back.
    pub(super) fn put_buffer(&mut self, buffer: HostBuffer) {
        self.free.push(buffer);
    }

    /// Requests under way.
    pub(super) fn outstanding(&self) -> usize {
        self.steps.len() - self.free_tokens.len()
    }

    /// Starts a request.
    ///
    /// # Errors
    /// The client's refusal. What was to be done has not begun; the step is gone.
    pub(super) fn submit(&mut self, operation: Operation, step: S) -> Result<(), RequestError> {
        let is_transfer = matches!(operation, Operation::Read { .. } | Operation::Write { .. });
        let token = self.free_tokens.pop().unwrap_or_else(|| {
            self.steps.push(None);
            self.steps.len() - 1
        });
        match self.connection.submit(operation, token as u64) {
            Ok(_) => {
                self.steps[token] = Some(Under { step, begun: Instant::now(), is_transfer });
                Ok(())
            }
            Err(refused) => {
                self.free_tokens.push(token);
                if let Operation::Read { buffer, .. } | Operation::Write { buffer, .. } =
                    refused.operation
                {
                    self.free.push(buffer);
                }
                Err(refused.error)
            }
        }
    }

    /// Waits until something has finished, and appends it.
    ///
    /// # Errors
    /// When the operating system refuses to wait, or a completion belongs to nothing.
    pub(super) fn wait(&mut self, finished: &mut Vec<Finished<S>>) -> Result<(), Failure> {
        let mut completions = std::mem::take(&mut self.completions);
        self.connection.wait(&mut completions)?;
        for Completion { token, result, buffer, .. } in completions.drain(..) {
            let index = token as usize;
            let Some(under) = self.steps.get_mut(index).and_then(Option::take) else {
                return Err(unexpected("a completion belongs to no request").about("waiting"));
            };
            self.free_tokens.push(index);
            if under.is_transfer && result.is_ok() {
                self.latencies.saturating_record(nanoseconds(under.begun.elapsed()));
            }
            finished.push(Finished { step: under.step, result, buffer });
        }
        self.completions = completions;
        Ok(())
    }

    /// How long reads and writes took, nanoseconds.
    pub(super) fn latencies(&self) -> &Histogram<u64> {
        &self.latencies
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
