//! The parts of one simulated connection. Data only: what happens to them is in [`super::state`],
//! [`super::lane`] and [`super::ending`].
//!
//! A link has two ends and two lanes. Lane `i` leads away from end `i`; it is the send queue of a
//! reliable connection: what is in it takes effect in its order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use gannet_fabric::{Access, ConnectionId, DisconnectReason, RemoteSlice, Transfer};
use gannet_fabric::{PostError, TransferStatus};
use gannet_runtime::memory::{Mapping, Memory};
use gannet_runtime::time::Time;

use super::window::WindowStep;

/// One end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Port {
    pub(super) link: u64,
    pub(super) side: usize,
}

impl Port {
    pub(super) fn other(self) -> Port {
        Port { link: self.link, side: 1 - self.side }
    }
}

/// How far an end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Asked for, or not yet accepted.
    Connecting,
    Open,
    /// This side disconnected and has not been told that it is done.
    Closing,
    /// Its user has been told; nothing of it completes any more.
    Ended,
}

/// How far a registration is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RegionState {
    /// The peer does not know it yet.
    Announced,
    Usable,
    /// The peer may start nothing new on it.
    Leaving,
}

/// Memory of one end that the other may reach.
pub(super) struct Region {
    pub(super) access: Access,
    pub(super) address: u64,
    pub(super) state: RegionState,
    /// The same pages, mapped a second time where they can be: replacing the pages of the
    /// owner's mapping leaves this one with the old ones.
    pub(super) view: Arc<Mapping>,
    /// Where the range starts in the view, and how long it is, bytes.
    pub(super) start: usize,
    pub(super) len_bytes: usize,
    /// Address of the range in the owner's own mapping.
    pub(super) owner: usize,
    /// A window: the key of the registration that it is of.
    pub(super) base: Option<u32>,
    /// Transfers of the peer that hold the registration.
    pub(super) pins: usize,
}

impl Region {
    /// Where in the view a range of the peer's request lies, if it is inside.
    pub(super) fn offset_of(&self, remote: RemoteSlice) -> Option<usize> {
        let offset = remote.address.checked_sub(self.address)?;
        let end = offset.checked_add(u64::from(remote.len_bytes))?;
        (end <= self.len_bytes as u64).then_some(self.start + offset as usize)
    }

    pub(super) fn grants(&self, access: Access) -> bool {
        (self.access.remote_read || !access.remote_read)
            && (self.access.remote_write || !access.remote_write)
    }
}

/// One end.
pub(super) struct End {
    /// Whose end; `None` at an acceptor that has not been reached yet.
    pub(super) endpoint: Option<usize>,
    pub(super) connection: ConnectionId,
    pub(super) phase: Phase,
    /// The peer's device reaches nothing of this end any more (`Model::Verbs`).
    pub(super) out_of_reach: bool,
    /// It disconnects, and what still arrives is dropped.
    pub(super) is_deaf: bool,
    /// The notice of the end is on its way to the user.
    pub(super) end_is_coming: bool,
    pub(super) regions: BTreeMap<u32, Region>,
    /// What is to be done to windows with the next flush.
    pub(super) window_steps: Vec<(u32, WindowStep)>,
    /// When the last of the steps before takes effect.
    pub(super) last_window_step: Time,
    /// Windows that the device is about to close.
    pub(super) windows_closing: BTreeSet<u32>,
    /// Messages under way, by class (small, large).
    pub(super) messages_out: [usize; 2],
    /// Credits that a partition holds back, by class.
    pub(super) credits_held: [usize; 2],
    /// Own transfers that have not been polled.
    pub(super) transfers_out: usize,
}

impl End {
    pub(super) fn new(endpoint: Option<usize>, connection: ConnectionId) -> End {
        End {
            endpoint,
            connection,
            phase: Phase::Connecting,
            out_of_reach: false,
            is_deaf: false,
            end_is_coming: false,
            regions: BTreeMap::new(),
            window_steps: Vec::new(),
            last_window_step: Time::ZERO,
            windows_closing: BTreeSet::new(),
            messages_out: [0; 2],
            credits_held: [0; 2],
            transfers_out: 0,
        }
    }
}

/// A read or write under way.
pub(super) struct Flight {
    pub(super) is_write: bool,
    pub(super) transfer: Transfer,
    /// Bytes placed so far.
    pub(super) moved: usize,
    /// Whether they are placed from the end.
    pub(super) backwards: bool,
    /// Whether it holds its registration.
    pub(super) pinned: bool,
}

impl Flight {
    pub(super) fn access(&self) -> Access {
        Access { remote_read: !self.is_write, remote_write: self.is_write }
    }

    pub(super) fn len_bytes(&self) -> usize {
        self.transfer.remote.len_bytes as usize
    }

    /// Places the next `len_bytes` bytes, as far as there are so many left.
    pub(super) fn place(&mut self, region: &Region, offset: usize, len_bytes: usize) {
        let left = self.len_bytes() - self.moved;
        let len_bytes = len_bytes.min(left);
        let from = if self.backwards { left - len_bytes } else { self.moved };
        let Some(slice) = region.view.slice((offset + from) as u64, len_bytes as u64) else {
            unreachable!("the range was checked when the transfer took effect");
        };
        let mut remote = Memory::Shared(slice);
        let local = self.transfer.offset + from;
        if self.is_write {
            self.transfer.memory.copy_to(local, &mut remote, 0, len_bytes);
        } else {
            remote.copy_to(0, &mut self.transfer.memory, local, len_bytes);
        }
        self.moved += len_bytes;
    }
}

/// What travels on a lane.
pub(super) enum Op {
    /// The acceptor is ready.
    Welcome,
    Message(Vec<u8>),
    Transfer(Flight),
    /// The sender closes in order.
    Close,
}

impl Op {
    pub(super) fn is_transfer(&self) -> bool {
        matches!(self, Op::Transfer(_))
    }
}

/// Something on its way.
pub(super) struct Flying {
    pub(super) due: Time,
    pub(super) op: Op,
}

/// A transfer that took effect; its completion is on the way back.
pub(super) struct Executed {
    pub(super) due: Time,
    pub(super) flight: Flight,
    pub(super) status: TransferStatus,
}

/// One direction.
pub(super) struct Lane {
    /// Posted, not flushed.
    pub(super) staged: Vec<Op>,
    pub(super) flying: VecDeque<Flying>,
    pub(super) executed: VecDeque<Executed>,
    /// Transfers that never take effect; they complete when their end learns of the break.
    pub(super) lost: Vec<Flight>,
    /// Nothing on the lane takes effect any more.
    pub(super) dead: bool,
    /// When the last thing put on the lane takes effect.
    pub(super) last_due: Time,
    /// When the last completion is back.
    pub(super) last_ack: Time,
    /// When the lane is looked at next.
    pub(super) timer: Time,
    /// Since when a partition holds the lane.
    pub(super) held_since: Option<Time>,
}

impl Default for Lane {
    fn default() -> Lane {
        Lane {
            staged: Vec::new(),
            flying: VecDeque::new(),
            executed: VecDeque::new(),
            lost: Vec::new(),
            dead: false,
            last_due: Time::ZERO,
            last_ack: Time::ZERO,
            timer: Time::NEVER,
            held_since: None,
        }
    }
}

impl Lane {
    /// Whether a transfer of the lane has not completed.
    pub(super) fn has_transfers(&self) -> bool {
        !self.executed.is_empty()
            || !self.lost.is_empty()
            || self.staged.iter().any(Op::is_transfer)
            || self.flying.iter().any(|flying| flying.op.is_transfer())
    }

    /// Ends the lane from `keep` things on: messages vanish, transfers are lost.
    pub(super) fn truncate(&mut self, keep: usize) {
        self.dead = true;
        for op in self.flying.drain(keep..).map(|flying| flying.op).chain(self.staged.drain(..)) {
            if let Op::Transfer(flight) = op {
                self.lost.push(flight);
            }
        }
    }
}

/// A connection.
pub(super) struct Link {
    pub(super) ends: [End; 2],
    pub(super) lanes: [Lane; 2],
    /// Messages and completions of devices get through no more.
    pub(super) broken: bool,
}

/// What an end point finds when it polls.
pub(super) enum Notice {
    Accepted(Port),
    Connected(Port),
    Message(Port, Vec<u8>),
    Transferred(Port, u64, Memory, TransferStatus),
    /// The other end registered memory.
    PeerRegisters(Port, u32),
    Registered(Port, u32),
    /// The other end wants its memory back.
    PeerDeregisters(Port, u32),
    Deregistered(Port, u32),
    Ending(Port, DisconnectReason),
}

impl Notice {
    pub(super) fn port(&self) -> Port {
        match self {
            Notice::Accepted(port)
            | Notice::Connected(port)
            | Notice::Message(port, _)
            | Notice::Transferred(port, ..)
            | Notice::PeerRegisters(port, _)
            | Notice::Registered(port, _)
            | Notice::PeerDeregisters(port, _)
            | Notice::Deregistered(port, _)
            | Notice::Ending(port, _) => *port,
        }
    }
}

/// The class of a message: 0 small, 1 large.
pub(super) fn class_of(len_bytes: usize) -> Result<usize, PostError> {
    if len_bytes <= gannet_fabric::SMALL_MESSAGE_BYTES {
        Ok(0)
    } else if len_bytes <= gannet_fabric::LARGE_MESSAGE_BYTES {
        Ok(1)
    } else {
        Err(PostError::TooLong)
    }
}
