//! The tcp provider against peers that do not keep to its protocol.
//!
//! A raw peer speaks over plain sockets, with the format written out here once more ([`bytes`]).
//! Whatever it does, the fabric answers with an end of that connection. Meanwhile another peer,
//! which does nothing wrong, is served: messages, reads and writes in both directions, their content
//! compared ([`stage`]).

mod answers;
mod bytes;
mod ends;
mod flood;
mod frames;
mod greetings;
mod keys;
mod memory;
mod peer;
mod revocation;
mod sessions;
mod slow;
mod stage;
