//! The rings between the reactors of one metadata server.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use gannet_meta_core::PeerMessage;
use gannet_runtime::ring::{Receiver, Sender, channel};

/// Messages that a ring holds.
const RING_MESSAGES: usize = 4096;

/// What reactors tell each other.
#[derive(Debug)]
pub enum ReactorMessage {
    /// To reactor 0: this reactor has read its log, whose last term this was.
    Recovered {
        /// The last term in the log.
        last_term: u64,
    },
    /// From reactor 0: all logs are read; this run is this term.
    Begin {
        /// The term that begins.
        term: u64,
    },
    /// From core to core.
    Core(PeerMessage),
}

/// One reactor's ends of the rings to all others.
#[derive(Debug)]
pub struct PeerLinks {
    senders: Vec<Option<Sender<ReactorMessage>>>,
    receivers: Vec<Option<Receiver<ReactorMessage>>>,
    /// What did not fit a ring: bounded by the operations that cores have under way.
    overflow: Vec<VecDeque<ReactorMessage>>,
}

/// Makes the rings between `reactors` reactors; element i belongs to reactor i.
///
/// # Errors
/// What making an eventfd returns.
pub fn link(reactors: usize) -> io::Result<Vec<PeerLinks>> {
    let mut links: Vec<PeerLinks> = (0..reactors)
        .map(|_| PeerLinks {
            senders: (0..reactors).map(|_| None).collect(),
            receivers: (0..reactors).map(|_| None).collect(),
            overflow: (0..reactors).map(|_| VecDeque::new()).collect(),
        })
        .collect();
    for from in 0..reactors {
        for to in (0..reactors).filter(|to| *to != from) {
            let (sender, receiver) = channel(RING_MESSAGES)?;
            links[from].senders[to] = Some(sender);
            links[to].receivers[from] = Some(receiver);
        }
    }
    Ok(links)
}

impl PeerLinks {
    /// Number of reactors.
    #[must_use]
    pub fn reactors(&self) -> usize {
        self.senders.len()
    }

    /// Sends a message, at the latest with the [`PeerLinks::flush`] that finds room.
    pub fn send(&mut self, reactor: u16, message: ReactorMessage) {
        self.overflow[usize::from(reactor)].push_back(message);
    }

    /// Takes the next message of any reactor.
    pub fn receive(&mut self) -> Option<(u16, ReactorMessage)> {
        self.receivers
            .iter_mut()
            .enumerate()
            .find_map(|(from, receiver)| Some((from as u16, receiver.as_mut()?.pop()?)))
    }

    /// Hands over what was sent and wakes reactors that sleep.
    pub fn flush(&mut self) {
        for (sender, overflow) in self.senders.iter_mut().zip(&mut self.overflow) {
            let Some(sender) = sender else { continue };
            while let Some(message) = overflow.pop_front() {
                if let Err(message) = sender.push(message) {
                    overflow.push_front(message);
                    break;
                }
            }
            sender.flush();
        }
    }

    /// Whether messages wait for room, so that sleeping would delay them.
    #[must_use]
    pub fn has_overflow(&self) -> bool {
        self.overflow.iter().any(|queue| !queue.is_empty())
    }

    pub(crate) fn arm(&mut self) {
        self.receivers.iter_mut().flatten().for_each(|receiver| receiver.arm());
    }

    pub(crate) fn disarm(&mut self) {
        self.receivers.iter_mut().flatten().for_each(|receiver| receiver.disarm());
    }

    pub(crate) fn wake_descriptors(&self, visit: &mut dyn FnMut(BorrowedFd<'_>)) {
        self.receivers.iter().flatten().for_each(|receiver| visit(receiver.wake_descriptor()));
    }
}
