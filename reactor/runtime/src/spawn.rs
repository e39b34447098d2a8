//! Starts a reactor on a thread of its own and waits for its end.
//!
//! Pollers hold what only their thread may touch, so they are not sent: a function that builds them
//! is, and runs on the reactor's thread once that is pinned, so that the memory it touches first is
//! near the core.

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use crate::reactor::{
    CoreUnavailable, NamedPollers, Reactor, ReactorOptions, StopReport, pin_to_core,
};
use crate::stats::ReactorStats;
use crate::stop::StopFlag;

/// Why a reactor did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError<E> {
    /// The system gave no thread.
    #[error("reactor {name}: cannot start a thread: {source}")]
    Thread {
        /// The reactor.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The core cannot be had.
    #[error("reactor {name}: {source}")]
    Core {
        /// The reactor.
        name: String,
        /// Which core.
        source: CoreUnavailable,
    },
    /// The pollers could not be built.
    #[error("reactor {name}: {source}")]
    Build {
        /// The reactor.
        name: String,
        /// What the building function returned.
        source: E,
    },
    /// Building the pollers panicked.
    #[error(transparent)]
    Panicked(#[from] ReactorPanicked),
}

/// A reactor's thread panicked: a bug in one of its pollers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("reactor {name} panicked: {message}")]
pub struct ReactorPanicked {
    /// The reactor.
    pub name: String,
    /// What the panic said.
    pub message: String,
}

/// A reactor that runs on a thread of its own. Dropping the handle lets it run on.
#[derive(Debug)]
pub struct ReactorHandle {
    thread: JoinHandle<StopReport>,
    stats: Arc<ReactorStats>,
}

impl ReactorHandle {
    /// Waits until the reactor has ended, which a stop asks for ([`StopFlag::stop`]).
    ///
    /// # Errors
    /// [`ReactorPanicked`] if a poller panicked; every reactor with the same stop flag then ends.
    pub fn join(self) -> Result<StopReport, ReactorPanicked> {
        let name = self.stats.name().to_owned();
        self.thread.join().map_err(|payload| panicked(name, &*payload))
    }

    /// Whether the reactor has ended, so that [`ReactorHandle::join`] does not wait.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// The reactor's name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.stats.name()
    }

    /// The reactor's counters.
    #[must_use]
    pub fn stats(&self) -> &Arc<ReactorStats> {
        &self.stats
    }
}

/// Starts a thread, pins it, builds the pollers there with `build`, and runs them until `stop`.
/// Returns when the pollers are built.
///
/// # Errors
/// [`SpawnError`] tells what failed; the thread has ended then.
pub fn spawn<E, F>(
    options: ReactorOptions,
    stop: StopFlag,
    build: F,
) -> Result<ReactorHandle, SpawnError<E>>
where
    F: FnOnce() -> Result<NamedPollers, E> + Send + 'static,
    E: Send + 'static,
{
    let name = options.name.clone();
    let (tell, told) = sync_channel(1);
    let builder = std::thread::Builder::new().name(name.clone());
    let body = move || {
        let reactor = match build_reactor(options, stop, build) {
            Ok(reactor) => reactor,
            Err(error) => {
                // The spawner waits for this, so the channel is open.
                let _sent = tell.send(Err(error));
                return StopReport { clean: true, unfinished: Vec::new() };
            }
        };
        let _sent = tell.send(Ok(reactor.stats()));
        drop(tell);
        reactor.run()
    };
    let thread =
        builder.spawn(body).map_err(|source| SpawnError::Thread { name: name.clone(), source })?;
    match told.recv() {
        Ok(Ok(stats)) => Ok(ReactorHandle { thread, stats }),
        Ok(Err(error)) => {
            let _nothing_ran = thread.join();
            Err(error)
        }
        // The thread told nothing: it unwound before it could.
        Err(_) => match thread.join() {
            Err(payload) => Err(SpawnError::Panicked(panicked(name, &*payload))),
            Ok(_) => unreachable!("a reactor's thread tells the spawner before it returns"),
        },
    }
}

fn build_reactor<E>(
    options: ReactorOptions,
    stop: StopFlag,
    build: impl FnOnce() -> Result<NamedPollers, E>,
) -> Result<Reactor, SpawnError<E>> {
    let name = options.name.clone();
    if let Some(core) = options.core {
        pin_to_core(core).map_err(|source| SpawnError::Core { name: name.clone(), source })?;
    }
    let pollers = build().map_err(|source| SpawnError::Build { name: name.clone(), source })?;
    Reactor::new(options, pollers, stop).map_err(|source| SpawnError::Core { name, source })
}

fn panicked(name: String, payload: &(dyn Any + Send)) -> ReactorPanicked {
    let message = match (payload.downcast_ref::<&str>(), payload.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (None, Some(text)) => text.clone(),
        (None, None) => "without a message".to_owned(),
    };
    ReactorPanicked { name, message }
}
