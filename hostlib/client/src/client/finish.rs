//! How requests end: everything of theirs is given back, their windows are closed, and only then
//! does the completion go to the user.

use gannet_fabric::Fabric;

use super::Client;
use crate::error::{ErrorKind, RequestError};
use crate::operation::{Completion, Operation, Outcome};
use crate::request::State;
use crate::slots::Parked;
use crate::waiting::Queue;

impl<F: Fabric> Client<F> {
    /// Ends a request. Its memory is out of reach of all data servers, or goes to quarantine.
    pub(super) fn finish(&mut self, index: u32, result: Result<Outcome, ErrorKind>) {
        self.finish_with(index, result, false);
    }

    pub(super) fn finish_with(
        &mut self,
        index: u32,
        result: Result<Outcome, ErrorKind>,
        quarantine: bool,
    ) {
        self.wakes.windows |= self.waiting.is_in(Queue::Windows, index);
        self.waiting.remove(index);
        self.leave_server(index);
        self.cancel_deadlines(index);
        self.give_up_place(index);
        if self.close_windows(index) && !self.defects.windows() {
            let request = &mut self.requests[index];
            request.state = State::Closing;
            request.result = Some(result);
            return self.watch_closing(index);
        }
        self.complete_with(index, result, quarantine);
    }

    /// The windows of a request that is over are gone.
    pub(super) fn complete(&mut self, index: u32) {
        self.cancel_deadlines(index);
        if let Some(result) = self.requests[index].result.take() {
            self.complete_with(index, result, false);
        }
    }

    fn cancel_deadlines(&mut self, index: u32) {
        let request = &mut self.requests[index];
        let (timeout, delay) = (request.timeout.take(), request.delay.take());
        for deadline in [timeout, delay].into_iter().flatten() {
            self.deadlines.cancel(deadline);
        }
    }

    /// The request does not need its slot any more. Where it may still be answered, nobody else
    /// gets the slot before that.
    fn give_up_place(&mut self, index: u32) {
        let request = &mut self.requests[index];
        let Some(place) = request.place.take() else { return };
        if request.uncertain {
            let operation = request.operation.as_ref();
            let answered_by_targets =
                operation.is_some_and(Operation::is_read) && !self.options.complete_by_metaserver;
            self.slots.park(Parked {
                place,
                attempt: request.attempt,
                handle: operation.and_then(Operation::handle),
                answered_by_targets,
            });
            self.wakes.probes |= 1 << place.shard;
        } else {
            self.slots.release(place);
        }
        // Even a parked slot is news to its queue: perhaps it was the last one.
        self.wakes.slots |= 1 << place.shard;
    }

    fn complete_with(&mut self, index: u32, result: Result<Outcome, ErrorKind>, quarantine: bool) {
        let (id, token) = (self.requests.id(index), self.requests[index].token);
        let Some(operation) = self.requests.remove(index) else { return };
        self.counters.completions += 1;
        let result: Result<Outcome, RequestError> = result.map_err(|kind| {
            self.counters.failures += 1;
            operation.error(kind)
        });
        let mut buffer = operation.into_buffer();
        if quarantine {
            self.quarantine.extend(buffer.take());
        }
        self.done.push(Completion { request: id, token, result, buffer });
    }
}
