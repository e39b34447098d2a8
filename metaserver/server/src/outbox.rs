//! Frames on their way to one peer.
//!
//! A turn's frames for one connection leave as one packet. When the fabric has no credit the packets
//! wait here; how many can pile up is bounded by the protocol's own credits (slots, grants), and
//! [`PACKETS_MAX`] is the limit at which a peer that does not take its messages is given up.

use std::collections::VecDeque;

use gannet_fabric::{ConnectionId, Fabric, PostError};
use gannet_proto::packet::{Message, PacketWriter};

/// Packets that may wait for one peer.
pub(crate) const PACKETS_MAX: usize = 1024;

/// The peer takes no messages, or its connection is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GiveUp;

/// Outgoing frames of one connection.
pub(crate) struct Outbox {
    packet: Box<PacketWriter>,
    waiting: VecDeque<Vec<u8>>,
    spare: Vec<Vec<u8>>,
}

impl Outbox {
    pub(crate) fn new() -> Outbox {
        Outbox { packet: Box::default(), waiting: VecDeque::new(), spare: Vec::new() }
    }

    /// Appends a frame.
    pub(crate) fn push<T: Message>(&mut self, message: &T, tail: &[&[u8]]) {
        if self.packet.push(message, tail).is_err() {
            self.seal();
            let fits = self.packet.push(message, tail);
            debug_assert!(fits.is_ok(), "a frame fits an empty packet");
        }
    }

    /// Appends a frame that was encoded before.
    pub(crate) fn push_encoded(&mut self, frame: &[u8]) {
        if self.packet.push_encoded(frame).is_err() {
            self.seal();
            let fits = self.packet.push_encoded(frame);
            debug_assert!(fits.is_ok(), "a frame fits an empty packet");
        }
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.packet.is_empty() && self.waiting.is_empty()
    }

    /// Posts as much as the fabric takes.
    ///
    /// # Errors
    /// [`GiveUp`] when the connection has ended or too much waits.
    pub(crate) fn send<F: Fabric>(
        &mut self,
        fabric: &mut F,
        connection: ConnectionId,
    ) -> Result<(), GiveUp> {
        while let Some(packet) = self.waiting.front() {
            match fabric.send(connection, packet) {
                Ok(()) => {
                    if let Some(mut packet) = self.waiting.pop_front() {
                        packet.clear();
                        self.spare.push(packet);
                    }
                }
                Err(PostError::Full) if self.waiting.len() < PACKETS_MAX => {
                    return Ok(());
                }
                Err(_) => return Err(GiveUp),
            }
        }
        if self.packet.is_empty() {
            return Ok(());
        }
        match fabric.send(connection, self.packet.bytes()) {
            Ok(()) => self.packet.clear(),
            // Stays in the packet, so that it can grow until the peer has room.
            Err(PostError::Full) => {}
            Err(_) => return Err(GiveUp),
        }
        Ok(())
    }

    fn seal(&mut self) {
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.extend_from_slice(self.packet.bytes());
        self.waiting.push_back(bytes);
        self.packet.clear();
    }
}
