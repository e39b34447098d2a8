//! One turn of a closed loop, whatever it asks for: poll, account, put new requests in the place of
//! those that ended.
//!
//! Belongs to the measuring thread. The clock is read once per turn, and once more when something
//! completed, so that a latency ends when the completion was taken, not when the turn in which it was
//! taken began.

use std::time::Duration;

use gannet_client::Completion;
use gannet_fabric::Fabric;
use gannet_runtime::time::Time;

use crate::error::PerfError;
use crate::host::Host;
use crate::latency::Latencies;

/// What is counted between the end of the warm-up and the end: whatever completes in that time.
#[derive(Default)]
pub(crate) struct Window {
    pub(crate) latencies: Latencies,
    /// Time of the client in turns with work.
    pub(crate) busy: Duration,
}

/// Keeps requests outstanding.
pub(crate) trait Load<F: Fabric> {
    /// The client that they go through.
    fn host(&mut self) -> &mut Host<F>;

    /// Takes a request that completed at `now`, records it in `window` if it counts, and submits
    /// what follows.
    fn completed(
        &mut self,
        completion: Completion,
        now: Time,
        window: Option<&mut Window>,
    ) -> Result<(), PerfError>;
}

/// Polls once, and hands over what completed. Returns the time to begin the next turn with.
pub(crate) fn turn<F: Fabric>(
    load: &mut impl Load<F>,
    now: Time,
    mut window: Option<&mut Window>,
) -> Result<Time, PerfError> {
    let work = load.host().poll(now)?;
    let mut completions = std::mem::take(&mut load.host().completions);
    let worked = work > 0 || !completions.is_empty();
    if !completions.is_empty() {
        let completed = Time::monotonic();
        for completion in completions.drain(..) {
            load.completed(completion, completed, window.as_deref_mut())?;
        }
    }
    load.host().completions = completions;
    let after = Time::monotonic();
    if worked && let Some(window) = window {
        window.busy += after.since(now);
    }
    Ok(after)
}
