//! Packets of one connection that have not left yet.
//!
//! Frames of a turn are collected into few packets. When the fabric has no credit they stay, and
//! when all packets are full the sender has to wait: nothing is dropped and nothing grows.

use gannet_fabric::{ConnectionId, Fabric, PostError};
use gannet_proto::packet::{Message, PacketWriter};

/// Packets of an outbox. Requests may fill all but the last, which is kept for control messages.
const PACKETS: usize = 4;

/// All packets are full; transmit first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutboxFull;

/// A bounded queue of packets.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// A ring; made at first use.
    packets: Vec<PacketWriter>,
    first: usize,
    used: usize,
    blocked: bool,
}

impl Outbox {
    /// Appends a request.
    pub(crate) fn push<T: Message>(
        &mut self,
        message: &T,
        tail: &[&[u8]],
    ) -> Result<(), OutboxFull> {
        self.push_within(PACKETS - 1, message, tail)
    }

    /// Appends a control message, for which room is kept.
    pub(crate) fn push_control<T: Message>(
        &mut self,
        message: &T,
        tail: &[&[u8]],
    ) -> Result<(), OutboxFull> {
        self.push_within(PACKETS, message, tail)
    }

    fn push_within<T: Message>(
        &mut self,
        packets_max: usize,
        message: &T,
        tail: &[&[u8]],
    ) -> Result<(), OutboxFull> {
        if self.packets.is_empty() {
            self.packets.resize_with(PACKETS, PacketWriter::new);
        }
        if self.used > 0 {
            let last = (self.first + self.used - 1) % PACKETS;
            if self.used <= packets_max && self.packets[last].push(message, tail).is_ok() {
                return Ok(());
            }
        }
        if self.used >= packets_max {
            return Err(OutboxFull);
        }
        let next = (self.first + self.used) % PACKETS;
        self.packets[next].clear();
        self.packets[next].push(message, tail).map_err(|_full| OutboxFull)?;
        self.used += 1;
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Whether the fabric refused a packet the last time.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Forgets everything: the connection is gone.
    pub(crate) fn clear(&mut self) {
        self.used = 0;
        self.blocked = false;
    }

    /// Posts what the fabric takes; returns how many packets that were.
    pub(crate) fn transmit(&mut self, fabric: &mut impl Fabric, to: ConnectionId) -> usize {
        let mut sent = 0;
        self.blocked = false;
        while self.used > 0 {
            match fabric.send(to, self.packets[self.first].bytes()) {
                Ok(()) => {
                    sent += 1;
                    self.first = (self.first + 1) % PACKETS;
                    self.used -= 1;
                }
                Err(PostError::Full) => {
                    self.blocked = true;
                    break;
                }
                // The end of the connection has been, or will be, polled; it clears the outbox.
                Err(PostError::NotConnected | PostError::TooLong) => break,
            }
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use gannet_proto::operations::{Cancel, Read};

    use super::*;

    #[test]
    fn requests_leave_room_for_control_messages() {
        let mut outbox = Outbox::default();
        let mut requests = 0;
        while outbox.push(&Read::default(), &[]).is_ok() {
            requests += 1;
        }
        assert_eq!(requests, (PACKETS - 1) * (8192 / 80));
        let mut cancels = 0;
        while outbox.push_control(&Cancel::default(), &[]).is_ok() {
            cancels += 1;
        }
        assert!(cancels >= 8192 / 24, "{cancels}");
        assert_eq!(outbox.push(&Read::default(), &[]), Err(OutboxFull));
        outbox.clear();
        assert!(outbox.is_empty());
        assert_eq!(outbox.push(&Read::default(), &[]), Ok(()));
    }
}
