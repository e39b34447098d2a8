//! Queues of requests that wait for something, as linked lists through one table.
//!
//! A request is in at most one queue, so the links take a fixed amount of memory however the
//! requests are spread. A queue is looked at when the event that it waits for happens, never per
//! turn.

use gannet_proto::limits::{REACTORS_MAX, SHARDS};

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    /// A free slot of a shard.
    Slot(u16),
    /// A channel to a reactor to be open.
    Channel(u16),
    /// Room on a channel: fewer requests outstanding, or packets that left.
    Room(u16),
    /// Data sessions and registrations.
    Sets,
    /// Memory windows.
    Windows,
}

const QUEUES: usize = SHARDS + 2 * REACTORS_MAX + 2;
const NONE: u32 = u32::MAX;

impl Queue {
    fn index(self) -> usize {
        match self {
            Queue::Slot(shard) => usize::from(shard) % SHARDS,
            Queue::Channel(reactor) => SHARDS + usize::from(reactor) % REACTORS_MAX,
            Queue::Room(reactor) => SHARDS + REACTORS_MAX + usize::from(reactor) % REACTORS_MAX,
            Queue::Sets => QUEUES - 2,
            Queue::Windows => QUEUES - 1,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    first: u32,
    last: u32,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    before: u32,
    after: u32,
    queue: u32,
}

/// All queues of a client.
#[derive(Debug)]
pub(crate) struct Waiting {
    ends: Vec<Ends>,
    links: Vec<Link>,
}

impl Waiting {
    /// Queues for requests with indices below `requests`.
    pub(crate) fn new(requests: usize) -> Waiting {
        Waiting {
            ends: vec![Ends { first: NONE, last: NONE }; QUEUES],
            links: vec![Link { before: NONE, after: NONE, queue: NONE }; requests],
        }
    }

    /// Appends a request, which is in no queue.
    pub(crate) fn push(&mut self, queue: Queue, request: u32) {
        let index = queue.index();
        debug_assert_eq!(self.links[request as usize].queue, NONE, "in two queues");
        let last = self.ends[index].last;
        self.links[request as usize] = Link { before: last, after: NONE, queue: index as u32 };
        match last {
            NONE => self.ends[index].first = request,
            last => self.links[last as usize].after = request,
        }
        self.ends[index].last = request;
    }

    /// Puts a request that is in a queue at the front of it.
    pub(crate) fn move_to_front(&mut self, request: u32) {
        let queue = self.links[request as usize].queue;
        if queue == NONE {
            return;
        }
        self.remove(request);
        let ends = &mut self.ends[queue as usize];
        let first = std::mem::replace(&mut ends.first, request);
        self.links[request as usize] = Link { before: NONE, after: first, queue };
        match first {
            NONE => ends.last = request,
            first => self.links[first as usize].before = request,
        }
    }

    /// Whether the request is in this queue.
    pub(crate) fn is_in(&self, queue: Queue, request: u32) -> bool {
        self.links[request as usize].queue == queue.index() as u32
    }

    /// Whether the request is in a queue.
    pub(crate) fn is_queued(&self, request: u32) -> bool {
        self.links[request as usize].queue != NONE
    }

    /// Takes the request out of whichever queue it is in, if any.
    pub(crate) fn remove(&mut self, request: u32) {
        let none = Link { before: NONE, after: NONE, queue: NONE };
        let link = std::mem::replace(&mut self.links[request as usize], none);
        if link.queue == NONE {
            return;
        }
        let ends = &mut self.ends[link.queue as usize];
        match link.before {
            NONE => ends.first = link.after,
            before => self.links[before as usize].after = link.after,
        }
        match link.after {
            NONE => ends.last = link.before,
            after => self.links[after as usize].before = link.before,
        }
    }

    /// Takes the oldest request.
    pub(crate) fn pop(&mut self, queue: Queue) -> Option<u32> {
        let first = self.ends[queue.index()].first;
        if first == NONE {
            return None;
        }
        self.remove(first);
        Some(first)
    }

    pub(crate) fn is_empty(&self, queue: Queue) -> bool {
        self.ends[queue.index()].first == NONE
    }

    pub(crate) fn len(&self, queue: Queue) -> usize {
        let mut count = 0;
        let mut at = self.ends[queue.index()].first;
        while at != NONE {
            count += 1;
            at = self.links[at as usize].after;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_leave_from_the_front_and_from_anywhere() {
        let mut waiting = Waiting::new(5);
        for request in 0..5 {
            waiting.push(Queue::Slot(3), request);
        }
        waiting.remove(2);
        waiting.remove(0);
        waiting.remove(4);
        assert_eq!(waiting.len(Queue::Slot(3)), 2);
        waiting.push(Queue::Sets, 2);
        assert_eq!(waiting.pop(Queue::Slot(3)), Some(1));
        assert_eq!(waiting.pop(Queue::Slot(3)), Some(3));
        assert_eq!(waiting.pop(Queue::Slot(3)), None);
        assert!(waiting.is_empty(Queue::Slot(3)) && waiting.is_empty(Queue::Channel(3)));
        waiting.remove(2);
        waiting.remove(2);
        assert!(waiting.is_empty(Queue::Sets));
    }

    #[test]
    fn a_request_can_be_put_first() {
        let mut waiting = Waiting::new(3);
        waiting.move_to_front(1);
        assert!(!waiting.is_queued(1), "it was in no queue");
        for request in 0..3 {
            waiting.push(Queue::Windows, request);
        }
        waiting.move_to_front(2);
        assert!(waiting.is_in(Queue::Windows, 2) && !waiting.is_in(Queue::Sets, 2));
        assert_eq!(waiting.len(Queue::Windows), 3);
        for request in [2, 0, 1] {
            assert_eq!(waiting.pop(Queue::Windows), Some(request));
        }
        waiting.push(Queue::Windows, 1);
        waiting.move_to_front(1);
        assert_eq!((waiting.pop(Queue::Windows), waiting.pop(Queue::Windows)), (Some(1), None));
    }
}
