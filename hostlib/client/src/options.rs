//! How a client is set up.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use gannet_fabric::Address;
use gannet_proto::SessionId;

use crate::fabrics::Fabrics;

/// How the host's memory is guarded against data servers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protection {
    /// A data server may reach the whole of each arena that requests to it have used, from then on
    /// until its connection ends.
    #[default]
    Region,
    /// A data server may reach exactly the bytes of a request, in the request's direction, as long
    /// as the request is under way: one memory window per request and data server. Costs two steps
    /// of the device per window; needs a fabric with memory windows.
    Window,
}

/// A word that names no [`Protection`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("protection is \"region\" or \"window\", not {0:?}")]
pub struct UnknownProtection(pub String);

impl FromStr for Protection {
    type Err = UnknownProtection;

    fn from_str(word: &str) -> Result<Protection, UnknownProtection> {
        match word {
            "region" => Ok(Protection::Region),
            "window" => Ok(Protection::Window),
            other => Err(UnknownProtection(other.to_owned())),
        }
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protection::Region => "region",
            Protection::Window => "window",
        })
    }
}

/// Settings of a [`crate::Client`].
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Address of the metadata server.
    pub metaserver: Address,
    /// The session: random, never used before, kept secret.
    pub session: SessionId,
    /// The host program's instance: random, new at each start.
    pub instance: u64,
    /// The host, so that the metadata server ends the sessions of its earlier instances; 0 if it
    /// shall not.
    pub host: u64,
    /// The user that the program asks for by itself, where the fabric does not know it better: over
    /// networks the metadata server takes a trusted host's word. 0 is the superuser.
    pub uid: u32,
    /// That user's group.
    pub gid: u32,
    /// Most requests that may be outstanding.
    pub requests_max: usize,
    /// Slots per shard to ask the metadata server for: requests under way there.
    pub slots: u16,
    /// How long a lost server is sought before the requests that need it fail.
    pub reconnect_timeout: Duration,
    /// How long a connection may take from its start to the server's welcome.
    pub handshake_timeout: Duration,
    /// Time-out of requests that bring none of their own; `None` waits as long as it takes.
    pub request_timeout: Option<Duration>,
    /// How long a cancelled request may take to its final answer before the host takes its memory
    /// back by force.
    pub cancel_timeout: Duration,
    /// First delay before a connection is tried again; doubles up to `reconnect_delay_max`.
    pub reconnect_delay_min: Duration,
    /// Longest delay before a connection is tried again.
    pub reconnect_delay_max: Duration,
    /// First delay before a request is sent again that failed without effect; doubles up to
    /// `retry_delay_max`.
    pub retry_delay_min: Duration,
    /// Longest delay before a request is sent again that failed without effect.
    pub retry_delay_max: Duration,
    /// Let the metadata server complete reads, after the data servers confirmed placement to it,
    /// rather than the data servers' arrival notices.
    pub complete_by_metaserver: bool,
    /// How memory is guarded. A data server is reached over a fabric that can do it; where none can,
    /// reads and writes end with [`crate::ErrorKind::NoWindows`].
    pub protection: Protection,
    /// Which of the addresses that servers listen at may be used.
    pub fabrics: Fabrics,
}

impl ClientOptions {
    /// Settings for a session that the caller made up.
    #[must_use]
    pub fn new(metaserver: Address, session: SessionId, instance: u64) -> ClientOptions {
        ClientOptions {
            metaserver,
            session,
            instance,
            host: 0,
            uid: 0,
            gid: 0,
            requests_max: 1024,
            slots: 256,
            reconnect_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(5),
            request_timeout: None,
            cancel_timeout: Duration::from_secs(1),
            reconnect_delay_min: Duration::from_millis(10),
            reconnect_delay_max: Duration::from_secs(1),
            retry_delay_min: Duration::from_micros(200),
            retry_delay_max: Duration::from_millis(100),
            complete_by_metaserver: false,
            protection: Protection::Region,
            fabrics: Fabrics::ALL,
        }
    }

    /// Settings with a random session and instance from the operating system.
    ///
    /// # Errors
    /// When the operating system has no randomness to give.
    pub fn random(metaserver: Address) -> Result<ClientOptions, getrandom::Error> {
        let mut session = 0;
        while session == 0 {
            session = getrandom::u64()?;
        }
        Ok(ClientOptions::new(metaserver, SessionId(session), getrandom::u64()?))
    }
}

/// Doubles a delay from `min` for each failure, up to `max`.
pub(crate) fn delay(min: Duration, max: Duration, failures: u32) -> Duration {
    let factor = 1_u32.checked_shl(failures.min(20)).unwrap_or(u32::MAX);
    min.saturating_mul(factor).min(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protection_is_a_word() {
        for protection in [Protection::Region, Protection::Window] {
            assert_eq!(protection.to_string().parse(), Ok(protection));
        }
        let unknown = "shared".parse::<Protection>().map_err(|unknown| unknown.to_string());
        let text = "protection is \"region\" or \"window\", not \"shared\"";
        assert_eq!(unknown, Err(text.to_owned()));
    }
}
