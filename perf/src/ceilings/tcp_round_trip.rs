//! The shortest time in which one core can ask another something over TCP and hear back.
//!
//! Two threads, each pinned to its core and polling its socket of one loopback connection: one sends
//! a small message, the other sends it back. What a server does over TCP at depth 1 takes at least
//! this; a read of Gannet's takes three hops between three parties, where this takes two.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use gannet_runtime::reactor::{CoreUnavailable, pin_to_core};
use gannet_runtime::time::Time;

use super::cpu::CpuWatch;
use super::round_trip::{RoundTrip, joined, summary};
use super::tcp;
use crate::error::PerfError;

/// Length of the message: less than any request.
const MESSAGE_BYTES: usize = 64;
/// Most round trips that are kept.
const ROUND_TRIPS_MAX: usize = 1 << 17;
/// Polls between two readings of the clock by a thread that waits.
const POLLS_PER_READING: u32 = 1 << 8;

/// Measures for `budget` at most, each round trip for itself. `None` if the cores are one and the
/// same, or if there was not time for a single round trip.
///
/// # Errors
/// If a core or a connection cannot be had, or the connection breaks.
pub fn measure(
    cores: [Option<usize>; 2],
    budget: Duration,
) -> Result<Option<RoundTrip>, PerfError> {
    if cores[0].is_some() && cores[0] == cores[1] {
        return Ok(None);
    }
    let failed = || PerfError::system("making round trips over TCP");
    let (client, server) = tcp::pair().map_err(failed())?;
    for socket in [&client, &server] {
        socket.set_nonblocking(true).map_err(failed())?;
    }
    // Each thread owns its socket, and so ends the other when it ends itself.
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| reply(server, cores[1]));
        let asking = scope.spawn(|| ask(client, cores[0], budget));
        let measured = joined(asking.join());
        joined(answering.join())??;
        measured
    })
}

fn pin(core: Option<usize>) -> Result<(), CoreUnavailable> {
    core.map_or(Ok(()), pin_to_core)
}

/// Sends everything back until the stream ends.
fn reply(mut socket: TcpStream, core: Option<usize>) -> Result<Result<(), PerfError>, PerfError> {
    pin(core)?;
    let mut message = [0; MESSAGE_BYTES];
    Ok(loop {
        match socket.read(&mut message) {
            Ok(0) => break Ok(()),
            Ok(count) => {
                if let Err(error) = send(&mut socket, &message[..count]) {
                    break Err(PerfError::system("answering over TCP")(error));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::hint::spin_loop(),
            // The asking thread may end with an answer on its way.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break Ok(()),
            Err(error) => break Err(PerfError::system("waiting for questions over TCP")(error)),
        }
    })
}

fn ask(
    mut socket: TcpStream,
    core: Option<usize>,
    budget: Duration,
) -> Result<Option<RoundTrip>, PerfError> {
    pin(core)?;
    let failed = || PerfError::system("asking over TCP");
    let watch = CpuWatch::start();
    let mut trips_ns: Vec<u64> = Vec::with_capacity(ROUND_TRIPS_MAX);
    let message = [7; MESSAGE_BYTES];
    let begin = Time::monotonic();
    let end = begin + budget;
    let mut before = begin;
    while before < end && trips_ns.len() < ROUND_TRIPS_MAX {
        send(&mut socket, &message).map_err(failed())?;
        if !hear(&mut socket, end).map_err(failed())? {
            break;
        }
        let after = Time::monotonic();
        trips_ns.push(after.0 - before.0);
        before = after;
    }
    Ok(summary(trips_ns, 1, watch))
}

/// Sends a message that the socket's buffer has room for.
fn send(socket: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    socket.write_all(message)
}

/// Waits for a whole message; false if the time was over before.
fn hear(socket: &mut TcpStream, end: Time) -> io::Result<bool> {
    let mut message = [0; MESSAGE_BYTES];
    let (mut len, mut polls) = (0, 0_u32);
    while len < MESSAGE_BYTES {
        match socket.read(&mut message[len..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => len += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                polls = polls.wrapping_add(1);
                if polls.is_multiple_of(POLLS_PER_READING) && Time::monotonic() >= end {
                    return Ok(false);
                }
                std::hint::spin_loop();
            }
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Nobody enters the kernel twice in less, whatever the processor.
    const TWO_SYSTEM_CALLS_NS: f64 = 100.0;

    /// Beside other tests the two threads may share a core, so that one alone takes milliseconds:
    /// what was measured is held against the time that it took, not against another ceiling.
    #[test]
    fn round_trips_over_tcp_fit_into_the_time_that_they_took() {
        let begin = Time::monotonic();
        let measured = measure([None, None], Duration::from_secs(1)).unwrap().unwrap();
        let took_ns = (Time::monotonic().0 - begin.0) as f64;
        assert!(measured.round_trips >= 1);
        assert!(TWO_SYSTEM_CALLS_NS <= measured.fastest_ns, "{measured:?}");
        assert!(measured.fastest_ns <= measured.median_ns, "{measured:?}");
        // Half of them took the median or longer.
        let at_least_ns = measured.round_trips as f64 / 2.0 * measured.median_ns;
        assert!(at_least_ns <= took_ns, "{measured:?} within {took_ns} ns");
    }

    #[test]
    fn one_core_cannot_play_both_sides() {
        assert!(measure([Some(0), Some(0)], Duration::from_secs(1)).unwrap().is_none());
    }

    #[test]
    fn a_core_that_does_not_exist_ends_both_threads() {
        for cores in [[Some(100_000), None], [None, Some(100_000)]] {
            let refused = measure(cores, Duration::from_millis(50)).unwrap_err();
            assert!(refused.to_string().contains("100000"), "{refused}");
        }
    }
}
