//! A session with a file system, for commands: many requests at once, or one call at a time.
//!
//! Belongs to the main thread, which waits for completions by polling for a moment and then sleeping
//! until a server signals.

use std::net::ToSocketAddrs;
use std::time::Duration;

use gannet_client::{
    Client, ClientOptions, Completion, ErrorKind, Fabrics, Operation, Outcome, Protection, Refused,
    RequestError, RequestId,
};
use gannet_fabric::any::AnyFabric;
use gannet_fabric::arena::{Arena, HostBuffer, RegionIds};
use gannet_fabric::{Address, DisconnectReason};
use gannet_proto::operations::{Attributes, file_type};
use gannet_proto::{Handle, Inode, Status};
use gannet_runtime::time::Time;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::cli::{ProtectionArguments, ServerArguments};
use crate::fabric::open_fabric;
use crate::failure::Failure;
use crate::remote::RemotePath;

/// How long to poll at full speed after the last event.
const SPIN: Duration = Duration::from_micros(50);
/// How long after that to offer the core to others between polls.
const YIELDS: Duration = Duration::from_micros(200);

/// A client and how to wait for it.
pub(crate) struct Connection {
    client: Client<AnyFabric>,
    regions: RegionIds,
    completions: Vec<Completion>,
}

impl Connection {
    /// Prepares a session of up to `requests_max` requests at once. The servers are sought with the
    /// first request.
    ///
    /// # Errors
    /// When the fabric or randomness cannot be had.
    pub(crate) fn open(
        server: &ServerArguments,
        requests_max: usize,
    ) -> Result<Connection, Failure> {
        Connection::with(server, Protection::Region, requests_max)
    }

    /// As [`Connection::open`], for a session that reads or writes.
    ///
    /// # Errors
    /// Also when the fabric cannot guard memory as it shall.
    pub(crate) fn open_for_data(
        server: &ServerArguments,
        protection: &ProtectionArguments,
        requests_max: usize,
    ) -> Result<Connection, Failure> {
        Connection::with(server, protection.protection, requests_max)
    }

    fn with(
        server: &ServerArguments,
        protection: Protection,
        requests_max: usize,
    ) -> Result<Connection, Failure> {
        let fabrics = fabrics(&server.server, server.fabrics, protection)?;
        let fabric = open_fabric(server.tcp.fabric_options(), &server.server)?;
        check_name(&server.server)?;
        let mut options =
            ClientOptions::random(server.server.clone()).map_err(Failure::operation)?;
        options.requests_max = requests_max;
        options.reconnect_timeout = server.patience;
        options.protection = protection;
        options.fabrics = fabrics;
        let client = Client::new(options, fabric);
        Ok(Connection { client, regions: RegionIds::new(), completions: Vec::new() })
    }

    /// Memory that data servers can reach.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub(crate) fn buffers(&self, bytes: usize, count: u32) -> Result<Vec<HostBuffer>, Failure> {
        let refuse = |error: &dyn std::fmt::Display| {
            let what = format!("{count} buffers of {bytes} bytes cannot be had: {error}");
            Failure::operation(format!("{what} (use a lower --depth)"))
        };
        let arena = Arena::new(&self.regions, bytes, count).map_err(|error| refuse(&error))?;
        let buffers: Vec<HostBuffer> = std::iter::from_fn(|| arena.take()).collect();
        Ok(buffers)
    }

    /// Starts a request; its completion comes with [`Connection::wait`].
    ///
    /// # Errors
    /// As [`Client::submit`].
    pub(crate) fn submit(
        &mut self,
        operation: Operation,
        token: u64,
    ) -> Result<RequestId, Box<Refused>> {
        self.client.submit(operation, token).map_err(Box::new)
    }

    /// Blocks until there is at least one completion.
    ///
    /// # Errors
    /// When the operating system refuses to wait.
    pub(crate) fn wait(&mut self, completions: &mut Vec<Completion>) -> Result<(), Failure> {
        let mut last_work = Time::monotonic();
        while completions.is_empty() {
            let now = Time::monotonic();
            if self.client.poll(now, completions) > 0 {
                last_work = now;
                continue;
            }
            let idle = now.since(last_work);
            if idle < SPIN {
                std::hint::spin_loop();
            } else if idle < SPIN + YIELDS {
                rustix::thread::sched_yield();
            } else {
                self.sleep(completions)?;
                last_work = Time::monotonic();
            }
        }
        Ok(())
    }

    /// Asks to be signalled, looks once more, and blocks until a signal or the next deadline.
    fn sleep(&mut self, completions: &mut Vec<Completion>) -> Result<(), Failure> {
        self.client.arm();
        let now = Time::monotonic();
        let slept = match self.client.poll(now, completions) {
            0 => self.block(now),
            _ => Ok(()),
        };
        self.client.disarm();
        slept
    }

    fn block(&self, now: Time) -> Result<(), Failure> {
        let deadline = self.client.deadline();
        let timeout = (deadline != Time::NEVER).then(|| {
            let left = deadline.since(now);
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        // The visit lends each descriptor for its own duration only.
        let mut duplicates = Vec::new();
        self.client.wake_descriptors(&mut |descriptor| {
            duplicates.push(descriptor.try_clone_to_owned());
        });
        let descriptors = duplicates.into_iter().collect::<Result<Vec<_>, _>>().map_err(waiting)?;
        let mut entries: Vec<PollFd<'_>> =
            descriptors.iter().map(|descriptor| PollFd::new(descriptor, PollFlags::IN)).collect();
        match rustix::event::poll(&mut entries, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(waiting(error.into())),
        }
    }

    /// Runs one request to its end. Not to be mixed with requests that are under way.
    ///
    /// # Errors
    /// The request's own, or what kept it from being sent.
    pub(crate) fn call(&mut self, operation: Operation) -> Result<Outcome, CallError> {
        let mut completions = std::mem::take(&mut self.completions);
        let outcome =
            self.submit(operation, 0).map_err(|refused| CallError::Request(refused.error));
        let outcome = outcome.and_then(|_request| {
            self.wait(&mut completions).map_err(CallError::Machine)?;
            match completions.pop() {
                Some(completion) => completion.result.map_err(CallError::Request),
                None => Err(unexpected("nothing completed")),
            }
        });
        completions.clear();
        self.completions = completions;
        outcome
    }

    /// Runs a request that is answered with attributes.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub(crate) fn entry(&mut self, operation: Operation) -> Result<Attributes, CallError> {
        match self.call(operation)? {
            Outcome::Entry(attributes) => Ok(attributes),
            _ => Err(unexpected("the answer is not attributes")),
        }
    }

    /// Resolves a path.
    ///
    /// # Errors
    /// As [`Connection::call`].
    pub(crate) fn lookup(&mut self, path: &RemotePath) -> Result<Attributes, CallError> {
        let mut parent = Handle::new(Inode::ROOT);
        let mut pieces = path.pieces();
        let mut piece = pieces.next();
        loop {
            let path = piece.unwrap_or_default();
            let attributes = self.entry(Operation::Lookup { parent, path })?;
            piece = pieces.next();
            if piece.is_none() {
                return Ok(attributes);
            }
            parent = attributes.handle;
        }
    }

    /// Reactors of the metadata server; known after the first request.
    pub(crate) fn reactors(&self) -> u16 {
        self.client.reactors()
    }
}

/// Refuses a name that stands for no address: to look for it again and again would not help.
fn check_name(server: &Address) -> Result<(), Failure> {
    let Address::Tcp { host, port } = server else { return Ok(()) };
    let reason = match (host.as_str(), *port).to_socket_addrs().map(|mut found| found.next()) {
        Ok(Some(_)) => return Ok(()),
        Ok(None) => "the name has no address".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Failure::operation(format!(
        "{server}: {reason} (correct the name, or write an IP address)"
    )))
}

/// Which fabrics to use for a server: those that were asked for, and of these the ones that can guard
/// memory as it shall be.
///
/// # Errors
/// When the server's own address is of another one.
pub(crate) fn fabrics(
    server: &Address,
    asked: Option<Fabrics>,
    protection: Protection,
) -> Result<Fabrics, Failure> {
    let mut fabrics = asked.unwrap_or_default();
    if !fabrics.allow(server) {
        return Err(Failure::usage(format!(
            "--fabric (or GANNET_FABRICS) is {fabrics}, and --server (or GANNET_SERVER) is {server}: \
             name an address of the metadata server of one of these, or {}:// too",
            server.scheme()
        )));
    }
    if protection == Protection::Window {
        // Shared memory has none, so that data goes another way.
        fabrics.shm = false;
        if !fabrics.allow(server) {
            let what = ErrorKind::NoWindows;
            return Err(Failure::usage(format!("--protection (or GANNET_PROTECTION): {what}")));
        }
    }
    Ok(fabrics)
}

fn waiting(error: std::io::Error) -> Failure {
    Failure::operation(format!("waiting for the servers: {error}"))
}

/// An answer that does not fit its question.
pub(crate) fn unexpected(what: &'static str) -> CallError {
    CallError::Request(RequestError::new("request", ErrorKind::Protocol(what)))
}

/// Why a call did not succeed.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The request failed.
    Request(RequestError),
    /// This machine did not let us wait for it.
    Machine(Failure),
}

impl CallError {
    /// The status that a server answered, if one did.
    pub(crate) fn status(&self) -> Option<Status> {
        match self {
            CallError::Request(error) => error.status(),
            CallError::Machine(_) => None,
        }
    }

    /// A failure of the command that names what it was about.
    pub(crate) fn about(self, what: impl std::fmt::Display) -> Failure {
        match self {
            CallError::Request(error) => Failure::operation(format!("{what}: {}", explain(&error))),
            CallError::Machine(failure) => failure,
        }
    }
}

/// What happened, and what helps where that is known.
pub(crate) fn explain(error: &RequestError) -> String {
    let remedy = match &error.kind {
        ErrorKind::MetaserverLost { reason: Some(DisconnectReason::NotTrusted), .. } => {
            " (do trusted_hosts, or trusted_uids, of the server name this machine, or user? Over \
             tcp:// a warning tells the address that the server saw)"
        }
        ErrorKind::MetaserverLost { reason: Some(DisconnectReason::Protocol), .. } => {
            " (does something else listen at that address, or another version of Gannet? See \
             --server or GANNET_SERVER, and the warnings)"
        }
        ErrorKind::MetaserverLost { .. } => {
            " (is the metadata server running, and is --server or GANNET_SERVER its address?)"
        }
        ErrorKind::TargetLost { .. } => " (is the data server running?)",
        ErrorKind::Status(Status::NO_SPACE) => " (see `gannet df`)",
        ErrorKind::Status(Status::TIMED_OUT) => " (are all data servers running?)",
        _ => "",
    };
    format!("{}{remedy}", error.kind)
}

/// Whether attributes are a directory's.
pub(crate) fn is_directory(attributes: &Attributes) -> bool {
    attributes.mode.get() & file_type::MASK == file_type::DIRECTORY
}
