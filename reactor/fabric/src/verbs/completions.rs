//! Completions: what each entry of a completion queue means.
//!
//! An entry names its connection, or for the shared receive queue the queue pair; one whose
//! connection is gone is dropped. The status of each entry is looked at: everything but success
//! breaks the connection, whose queue pair is in the error state then anyway.

use rdma_sys::{ibv_wc_opcode as opcodes, ibv_wc_status as statuses};

use super::connection::{Connection, State};
use super::fabric::{RECEIVE_TAG, SHARED_TAG, Tag, VerbsFabric};
use super::objects::{Completion, POLL_BATCH};
use super::send::Work;
use super::wire::{HEADER_BYTES, Header, Kind};
use crate::credits::{Messages, Overdrawn};
use crate::{DisconnectReason, Event, Events, Key, TransferStatus};

/// Batches taken from one completion queue per poll.
const BATCHES_PER_POLL: usize = 8;

impl VerbsFabric {
    /// Takes what the devices completed, posts receive entries again, returns credits.
    #[inline]
    pub(super) fn poll_completions(&mut self, events: &mut Events) {
        let Some(mut batch) = self.batch.take() else { return };
        let mut empty = true;
        for device in 0..self.devices.len() {
            empty &= self.poll_device(device, &mut batch, events);
        }
        self.batch = Some(batch);
        // With the queues empty: a device drops the entries of a queue pair that is destroyed, and
        // among them may be the last receive entry that it had taken from the shared queue.
        if empty && !self.drained.is_empty() {
            self.finish_drained(events);
        }
        if !self.owing.is_empty() {
            self.return_credits();
        }
        // Windows that waited for room in a send queue: their users do not know of it.
        if !self.dirty.is_empty() {
            self.ring();
        }
    }

    fn finish_drained(&mut self, events: &mut Events) {
        while let Some((index, reason)) = self.drained.pop() {
            // The deadline may have come first, and somebody else have the place since.
            let found = self.slots.at(index);
            let drained = found.is_some_and(|found| {
                let done = found.wiring.as_ref().is_none_or(|wiring| wiring.send.is_empty());
                found.state == State::Draining(reason) && done
            });
            if drained {
                self.finish(index, reason, events);
            }
        }
    }

    /// True if nothing is left in the device's queue.
    #[inline]
    fn poll_device(
        &mut self,
        device: usize,
        batch: &mut [Completion; POLL_BATCH],
        events: &mut Events,
    ) -> bool {
        for _ in 0..BATCHES_PER_POLL {
            let Some(Some(found)) = self.devices.get(device) else { return true };
            let taken = found.completions.poll(batch);
            for completion in &batch[..taken.min(POLL_BATCH)] {
                self.completed(device, completion, events);
            }
            if taken > 0 {
                self.post_receives(device);
            }
            if taken < POLL_BATCH {
                return true;
            }
        }
        false
    }

    /// Posts the receive entries that were read, in one call per queue.
    fn post_receives(&mut self, device: usize) {
        if let Some(Some(found)) = self.devices.get_mut(device)
            && let Some(receives) = &mut found.receives
            && let Err(error) = receives.post()
        {
            // They are posted with the next batch; peers are held up meanwhile.
            tracing::warn!(device = %found.name, %error, "receive entries cannot be posted");
        }
        while let Some(index) = self.refill.pop() {
            let Some(connection) = self.slots.at_mut(index) else { continue };
            connection.refill = false;
            let usable = matches!(connection.state, State::Connecting | State::Established);
            if usable
                && let Some(receives) =
                    connection.wiring.as_mut().and_then(|wiring| wiring.receives.as_mut())
                && receives.post().is_err()
            {
                self.begin_drain(index, DisconnectReason::PeerLost);
            }
        }
    }

    /// Sends credits to peers that are owed many.
    fn return_credits(&mut self) {
        while let Some(index) = self.owing.pop() {
            let Some(connection) = self.slots.at_mut(index) else { continue };
            let Some(wiring) = connection.usable() else { continue };
            // Without room they go with the next message, or when a completion has made some: a
            // peer may have used up what it got before its device's acknowledgements come here.
            if wiring.credits.should_return() && wiring.send.has_room_in_reserve() {
                let header = Header::new(Kind::Credits, wiring.credits.take_owed());
                wiring.send.push_message(header, &[]);
                self.mark_dirty(index);
            }
        }
        self.ring();
    }

    #[inline]
    fn completed(&mut self, device: usize, completion: &Completion, events: &mut Events) {
        let word = completion.0.wr_id;
        if word & RECEIVE_TAG == 0 {
            if let Some(index) = Tag::find(word, &self.slots) {
                self.sent(index, word as u32, completion.0.status, events);
            }
        } else {
            self.received(device, completion, events);
        }
    }

    /// A frame arrived, or a receive entry came back without one.
    #[inline]
    fn received(&mut self, device: usize, completion: &Completion, events: &mut Events) {
        let (word, status) = (completion.0.wr_id, completion.0.status);
        let buffer = word as u32;
        let shared = word & SHARED_TAG != 0;
        let index = if shared {
            self.pairs.get(&(device, completion.0.qp_num)).copied()
        } else {
            Tag::find(word & !RECEIVE_TAG, &self.slots)
        };
        let Some(Some(device)) = self.devices.get_mut(device) else { return };
        let Some(index) = index else {
            if shared && let Some(receives) = &mut device.receives {
                receives.give_back(buffer);
            }
            return;
        };
        let id = self.slots.id(index);
        let Some(connection) = self.slots.at_mut(index) else { return };
        let Connection { wiring: Some(wiring), state, goodbye, peer, deadline, .. } =
            &mut **connection
        else {
            return;
        };
        let Some(receives) = wiring.receives.as_mut().or(device.receives.as_mut()) else { return };
        let mut ended = None;
        if status == statuses::IBV_WC_SUCCESS {
            if *state == State::Accepting {
                // The first message may come before the manager's event.
                *state = State::Established;
                *deadline = None;
                events.push(Event::Accepted {
                    connection: id,
                    peer: peer.clone().unwrap_or_else(nobody),
                });
            }
            // A write that announces itself completes an entry too, and leaves it as it was.
            let is_frame = completion.0.opcode == opcodes::IBV_WC_RECV;
            let frame_bytes = completion.0.byte_len as usize;
            let header = Header::decode(receives.header(buffer), frame_bytes);
            let header = header.filter(|_| is_frame).ok_or(Overdrawn);
            let counted = |header: Header| {
                wiring.credits.returned(header.returned, Messages::default())?;
                if let Kind::Message(class) = header.kind {
                    wiring.credits.received(class)?;
                }
                Ok(header.kind)
            };
            match header.and_then(counted) {
                Ok(Kind::Message(_)) => {
                    // After this side ended the connection, its user hears no more.
                    if !matches!(state, State::Lingering | State::Draining(DisconnectReason::Local))
                    {
                        events.push_message(id, frame_bytes - HEADER_BYTES, |into| {
                            receives.copy_body(buffer, into);
                        });
                    }
                }
                Ok(Kind::Credits) => {}
                Ok(Kind::Goodbye) => {
                    *goodbye = true;
                    ended = Some(DisconnectReason::Remote);
                }
                Err(Overdrawn) => ended = Some(DisconnectReason::Protocol),
            }
            if wiring.credits.should_return() && self.owing.last() != Some(&index) {
                self.owing.push(index);
            }
        } else {
            // Flushed: the queue pair broke by itself. Anything else: the frame did not fit.
            let flushed = status == statuses::IBV_WC_WR_FLUSH_ERR;
            let reasons = (DisconnectReason::PeerLost, DisconnectReason::Protocol);
            ended = Some(if flushed { reasons.0 } else { reasons.1 });
        }
        receives.give_back(buffer);
        if !shared && !connection.refill {
            connection.refill = true;
            self.refill.push(index);
        }
        if let Some(reason) = ended {
            self.begin_drain(index, reason);
        }
    }

    /// A request completed, and with it all before it.
    #[inline]
    fn sent(&mut self, index: u32, number: u32, status: statuses::Type, events: &mut Events) {
        let id = self.slots.id(index);
        let Some(connection) = self.slots.at_mut(index) else { return };
        let Some(wiring) = &mut connection.wiring else { return };
        let (send, own) = (&mut wiring.send, &mut wiring.own);
        let mut finish = |work: Work, status: TransferStatus| match work {
            Work::Transfer { token, memory } => {
                events.push(Event::Transferred { connection: id, token, memory, status });
            }
            Work::Bind { key } if status == TransferStatus::Done => {
                events.push(Event::Registered { connection: id, key: Key(key) });
            }
            Work::Invalidate { key } if status == TransferStatus::Done => {
                events.push(Event::Deregistered { connection: id, key: Key(key) });
                if let Some(base) = own.as_mut().and_then(|own| own.closed(key)) {
                    events.push(Event::Deregistered { connection: id, key: Key(base) });
                }
            }
            Work::Message { .. } | Work::Bind { .. } | Work::Invalidate { .. } | Work::Marker => {}
        };
        let last = send.complete(number, |work| finish(work, TransferStatus::Done));
        let Some(work) = last else { return };
        if status == statuses::IBV_WC_SUCCESS {
            finish(work, TransferStatus::Done);
            if let Some(own) = own {
                own.close_waiting(send);
            }
            let (unposted, done) = (send.has_unposted(), send.is_empty());
            if wiring.credits.should_return() && self.owing.last() != Some(&index) {
                self.owing.push(index);
            }
            match connection.state {
                State::Lingering if done => self.begin_drain(index, DisconnectReason::Local),
                State::Draining(reason) if done => self.drained.push((index, reason)),
                _ if unposted => self.mark_dirty(index),
                _ => {}
            }
            return;
        }
        let is_transfer = matches!(work, Work::Transfer { .. });
        let (status, reason) = outcome(status, is_transfer);
        finish(work, status);
        match connection.state {
            State::Draining(reason) => {
                if send.is_empty() {
                    self.drained.push((index, reason));
                }
            }
            State::Lingering => self.begin_drain(index, DisconnectReason::Local),
            _ => self.begin_drain(index, reason),
        }
    }
}

/// What a status other than success means for its request and for the connection.
fn outcome(status: statuses::Type, is_transfer: bool) -> (TransferStatus, DisconnectReason) {
    match status {
        // Key, range or rights, as the peer's device sees them.
        statuses::IBV_WC_REM_ACCESS_ERR
        | statuses::IBV_WC_REM_INV_REQ_ERR
        | statuses::IBV_WC_REM_INV_RD_REQ_ERR
            if is_transfer =>
        {
            (TransferStatus::AccessRefused, DisconnectReason::TransferRefused)
        }
        // The peer's device could not finish; or nobody answered.
        statuses::IBV_WC_REM_ACCESS_ERR
        | statuses::IBV_WC_REM_INV_REQ_ERR
        | statuses::IBV_WC_REM_INV_RD_REQ_ERR
        | statuses::IBV_WC_REM_OP_ERR
        | statuses::IBV_WC_REM_ABORT_ERR
        | statuses::IBV_WC_RETRY_EXC_ERR
        | statuses::IBV_WC_RNR_RETRY_EXC_ERR
        | statuses::IBV_WC_RESP_TIMEOUT_ERR
        | statuses::IBV_WC_WR_FLUSH_ERR => {
            (TransferStatus::ConnectionLost, DisconnectReason::PeerLost)
        }
        // This side's own: a request that the device refuses, or a device that fails.
        other => {
            tracing::error!(status = other, "an RDMA request failed at this side");
            (TransferStatus::ConnectionLost, DisconnectReason::PeerLost)
        }
    }
}

/// For connections whose manager does not tell the peer's address.
pub(super) fn nobody() -> crate::PeerIdentity {
    crate::PeerIdentity::Network("unknown".to_owned())
}
