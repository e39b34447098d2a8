//! A fabric with one connection, whose peer says whatever it is told.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use gannet_runtime::time::Time;

use crate::tcp::connection::Connection;
use crate::tcp::wire::{
    Entry, FrameHeader, GREETING_BYTES, Greeting, GreetingKind, HEADER_BYTES, set_checksum,
};
use crate::tcp::{TcpFabric, TcpOptions};
use crate::{Address, ConnectionId, DisconnectReason, Event, Events, Fabric, TransferStatus};

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) struct Stage {
    pub(super) fabric: TcpFabric,
    pub(super) id: ConnectionId,
    /// What happened and was not looked at; messages apart.
    pub(super) events: Vec<Event>,
    pub(super) messages: Vec<Vec<u8>>,
    batch: Events,
    /// The peer's end; `None` once it is dead.
    pub(super) stream: Option<TcpStream>,
    pub(super) heard: Vec<u8>,
    /// The peer heard the end of the stream, or that it was cut off.
    pub(super) over: Option<std::io::Result<()>>,
    sequence: u32,
}

impl Stage {
    /// Connects; the peer grants as much as the fabric does.
    pub(super) fn new(options: TcpOptions) -> Stage {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let welcome = Greeting {
            kind: GreetingKind::Welcome,
            small_credits: options.small_credits,
            large_credits: options.large_credits,
            transfers_max: options.transfers_max as u16,
            payload_checksums: options.payload_checksums,
            seen: None,
        };
        let mut fabric = TcpFabric::new(options).expect("a fabric");
        let to = Address::Tcp { host: "127.0.0.1".to_owned(), port };
        let id = fabric.connect(&to).expect("room");
        fabric.flush();
        let (mut stream, _) = listener.accept().expect("it connects");
        stream.write_all(&welcome.encode()).expect("a fresh socket");
        stream.set_nonblocking(true).expect("an option of every socket");
        let mut stage = Stage {
            fabric,
            id,
            events: Vec::new(),
            messages: Vec::new(),
            batch: Events::with_capacity(64, 1 << 16),
            stream: Some(stream),
            heard: Vec::new(),
            over: None,
            sequence: 0,
        };
        stage.until("the connection", |stage| {
            stage.take(|event| matches!(event, Event::Connected { .. }).then_some(()))
        });
        stage
    }

    pub(super) fn turn(&mut self) {
        self.turn_at(Time::monotonic());
    }

    /// Flushes and polls, as if it were `now`.
    pub(super) fn turn_at(&mut self, now: Time) {
        self.fabric.flush();
        self.fabric.poll(now, &mut self.batch);
        while let Some(event) = self.batch.pop() {
            match event {
                Event::Message { bytes, .. } => {
                    self.messages.push(self.batch.message(bytes).to_vec());
                }
                other => self.events.push(other),
            }
        }
        self.batch.clear();
    }

    /// Polls until `done` yields something.
    pub(super) fn until<T>(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Stage) -> Option<T>,
    ) -> T {
        let start = Instant::now();
        loop {
            if let Some(value) = done(self) {
                return value;
            }
            assert!(start.elapsed() < PATIENCE, "{what} did not happen: {:?}", self.events);
            self.turn();
        }
    }

    /// Takes the oldest event that `wanted` picks.
    pub(super) fn take<T>(&mut self, mut wanted: impl FnMut(&Event) -> Option<T>) -> Option<T> {
        let found = self.events.iter().enumerate();
        let (at, value) = found.filter_map(|(at, event)| Some((at, wanted(event)?))).next()?;
        self.events.remove(at);
        Some(value)
    }

    /// Polls until the connection ends; why.
    pub(super) fn end(&mut self) -> DisconnectReason {
        self.until("the end", |stage| {
            stage.take(|event| match event {
                Event::Disconnected { reason, .. } => Some(*reason),
                _ => None,
            })
        })
    }

    /// Transfers that completed, in order. Their memory is dropped.
    pub(super) fn completed(&mut self) -> Vec<(u64, TransferStatus)> {
        let mut completed = Vec::new();
        while let Some(found) = self.take(|event| match event {
            Event::Transferred { token, status, .. } => Some((*token, *status)),
            _ => None,
        }) {
            completed.push(found);
        }
        completed
    }

    pub(super) fn connection(&mut self) -> &mut Connection {
        self.fabric.at(self.id.index).expect("it is there")
    }

    /// The next frame of the peer. `payload` has the bytes of each write and answer.
    pub(super) fn frame(&mut self, placed: u32, entries: &[Entry], payload: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        let mut parts = payload.iter();
        for entry in entries {
            let at = bytes.len();
            entry.push(&mut bytes);
            if let Entry::Write { .. } | Entry::ReadAnswer { .. } = entry {
                let part = parts.next().expect("each has its payload");
                set_checksum(&mut bytes[at..], crc32c::crc32c(part));
            }
        }
        let payload = payload.concat();
        let header = FrameHeader {
            control_bytes: (bytes.len() - HEADER_BYTES) as u32,
            payload_bytes: payload.len() as u32,
            sequence: self.sequence,
            writes_placed: placed,
            small_returned: 0,
            large_returned: 0,
        };
        self.sequence += 1;
        header.encode(&mut bytes);
        bytes.extend_from_slice(&payload);
        bytes
    }

    /// A frame of the peer with one message.
    pub(super) fn message(&mut self, message: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; HEADER_BYTES];
        Entry::push_message(message, &mut frame);
        let header = FrameHeader {
            control_bytes: (frame.len() - HEADER_BYTES) as u32,
            payload_bytes: 0,
            sequence: self.sequence,
            writes_placed: 0,
            small_returned: 0,
            large_returned: 0,
        };
        self.sequence += 1;
        header.encode(&mut frame);
        frame
    }

    /// The peer says as much as its socket takes; the rest.
    pub(super) fn begin<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let Some(stream) = &mut self.stream else { return bytes };
        match stream.write(bytes) {
            Ok(count) => &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => bytes,
            // The other end is closed: nobody will hear it.
            Err(_) => &[],
        }
    }

    /// The peer says all of it.
    pub(super) fn say(&mut self, mut bytes: &[u8]) {
        let start = Instant::now();
        while !bytes.is_empty() {
            bytes = self.begin(bytes);
            self.turn();
            assert!(start.elapsed() < PATIENCE, "{} bytes are not taken", bytes.len());
        }
    }

    /// The peer hears what is there.
    pub(super) fn listen(&mut self) {
        self.listen_up_to(usize::MAX);
    }

    /// The peer hears so much, if it is there.
    pub(super) fn listen_up_to(&mut self, len_bytes: usize) {
        let mut piece = [0; 64 * 1024];
        let end = self.heard.len().saturating_add(len_bytes);
        while let (Some(stream), None) = (&mut self.stream, &self.over) {
            let most = piece.len().min(end - self.heard.len());
            if most == 0 {
                return;
            }
            match stream.read(&mut piece[..most]) {
                Ok(0) => self.over = Some(Ok(())),
                Ok(count) => self.heard.extend_from_slice(&piece[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => self.over = Some(Err(error)),
            }
        }
    }

    /// Entries in the frames that the peer heard whole.
    pub(super) fn entries(&mut self) -> Vec<Entry> {
        self.listen();
        let mut entries = Vec::new();
        let mut rest = self.heard.get(GREETING_BYTES..).unwrap_or_default();
        while rest.len() >= HEADER_BYTES {
            let end = HEADER_BYTES + FrameHeader::control_bytes(rest).expect("a right header");
            let payload = u32::from_le_bytes(rest[8..12].try_into().expect("four bytes"));
            let Some((frame, behind)) = rest.split_at_checked(end + payload as usize) else {
                break;
            };
            let mut control = &frame[HEADER_BYTES..end];
            while !control.is_empty() {
                let (entry, len, _) = Entry::read(control).expect("a right entry");
                entries.push(entry);
                control = &control[len..];
            }
            rest = behind;
        }
        entries
    }

    /// Polls until the peer has heard so many entries; all of them.
    pub(super) fn hear(&mut self, count: usize) -> Vec<Entry> {
        self.until("what the peer waits for", |stage| {
            Some(stage.entries()).filter(|entries| entries.len() >= count)
        })
    }
}
