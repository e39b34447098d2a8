//! Files that the program has open at the metadata server.
//!
//! An open is the server's to remember; a server that starts anew has forgotten it, and is told again
//! when its channel is open.

use std::collections::{BTreeMap, VecDeque};

use gannet_proto::Handle;
use gannet_proto::operations::{DeclareOpen, inode_operation, name_flags};
use zerocopy::little_endian::{U16, U32};

use crate::identities::{Definition, IdentityId};

/// Names an open, see [`crate::Client::new_open`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpenId(pub(crate) u32);

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenAccess {
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Both.
    ReadWrite,
}

impl OpenAccess {
    /// The flags with which a file that is made is opened so.
    pub(crate) fn flags(self) -> u32 {
        match self {
            OpenAccess::Read => name_flags::OPEN_READ,
            OpenAccess::Write => name_flags::OPEN_WRITE,
            OpenAccess::ReadWrite => name_flags::OPEN_READ | name_flags::OPEN_WRITE,
        }
    }

    /// The operation that opens so.
    pub(crate) fn operation(self) -> u16 {
        match self {
            OpenAccess::Read => inode_operation::OPEN_READ,
            OpenAccess::Write => inode_operation::OPEN_WRITE,
            OpenAccess::ReadWrite => inode_operation::OPEN_READ_WRITE,
        }
    }
}

/// An open that the server has acknowledged. The program may give its identity's number to somebody else
/// meanwhile, so it is kept who that was when the file was opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) file: Handle,
    pub(crate) access: OpenAccess,
    pub(crate) identity: IdentityId,
    /// Nobody for [`IdentityId::OWN`].
    pub(crate) opener: Option<Definition>,
}

/// What a reactor has to be told.
#[derive(Debug)]
pub(crate) enum Untold {
    /// A file is open; its opener is to be made known first.
    Open(DeclareOpen, Option<Definition>),
    /// These were all.
    Complete,
}

/// All opens of a client.
#[derive(Debug, Default)]
pub(crate) struct Opens {
    last: u32,
    table: BTreeMap<OpenId, Known>,
    /// To be told to a reactor whose channel is open; `None`: that this was all.
    untold: VecDeque<(u16, Option<OpenId>)>,
}

impl Opens {
    /// A number that no open has.
    pub(crate) fn next(&mut self) -> OpenId {
        loop {
            self.last = self.last.wrapping_add(1);
            if !self.table.contains_key(&OpenId(self.last)) {
                return OpenId(self.last);
            }
        }
    }

    /// The server has opened a file.
    pub(crate) fn insert(&mut self, open: OpenId, known: Known) {
        self.table.insert(open, known);
    }

    /// The program closes it.
    pub(crate) fn remove(&mut self, open: OpenId) {
        self.table.remove(&open);
    }

    /// A reactor has a new channel: it is told of the opens for which `is_there` says that they are
    /// at it, and that it knows them all then.
    pub(crate) fn channel_open(&mut self, reactor: u16, is_there: impl Fn(Handle) -> bool) {
        self.channel_lost(reactor);
        let there = self.table.iter().filter(|(_, known)| is_there(known.file));
        self.untold.extend(there.map(|(open, _)| (reactor, Some(*open))));
        self.untold.push_back((reactor, None));
    }

    /// A reactor has no channel.
    pub(crate) fn channel_lost(&mut self, reactor: u16) {
        self.untold.retain(|(of, _)| *of != reactor);
    }

    /// The next message that a reactor shall get, until [`Opens::told`].
    pub(crate) fn untold(&mut self) -> Option<(u16, Untold)> {
        while let Some((reactor, open)) = self.untold.front() {
            let Some(open) = open else { return Some((*reactor, Untold::Complete)) };
            if let Some(known) = self.table.get(open) {
                let message = DeclareOpen {
                    handle: known.file,
                    operation: U16::new(known.access.operation()),
                    identity: U16::new(known.identity.0),
                    open: U32::new(open.0),
                };
                return Some((*reactor, Untold::Open(message, known.opener)));
            }
            self.untold.pop_front();
        }
        None
    }

    /// The message has a place among what leaves.
    pub(crate) fn told(&mut self) {
        self.untold.pop_front();
    }

    /// Whether there is something to tell.
    pub(crate) fn has_untold(&self) -> bool {
        !self.untold.is_empty()
    }
}
