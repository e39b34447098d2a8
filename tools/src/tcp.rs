//! What commands of hosts can set about TCP: by the names and within the bounds of the servers'
//! table `[tcp]`, as far as it concerns the side that connects.

use std::ops::RangeInclusive;
use std::time::Duration;

use clap::Args;
use gannet_fabric::any::FabricOptions;
use gannet_fabric::tcp::TcpOptions;

use crate::config::{TCP_CONNECT_TIMEOUT, TCP_PEER_TIMEOUT};
use crate::units::{format_duration, parse_duration};

/// Under which the help lists them.
const HEADING: &str = "Connections over tcp://";

/// How to connect over TCP. Of connections over other fabrics nothing of it means anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub(crate) struct TcpArguments {
    /// A server that acknowledges nothing for so long, or takes nothing, is lost: 2s to 10m
    /// [default: 5s].
    #[arg(long, value_name = "TIME", env = "GANNET_TCP_PEER_TIMEOUT")]
    #[arg(help_heading = HEADING)]
    #[arg(value_parser = parse_peer_timeout, allow_hyphen_values = true)]
    tcp_peer_timeout: Option<Duration>,
    /// How long making a connection may take: 10ms to 1m [default: 2s].
    #[arg(long, value_name = "TIME", env = "GANNET_TCP_CONNECT_TIMEOUT")]
    #[arg(help_heading = HEADING)]
    #[arg(value_parser = parse_connect_timeout, allow_hyphen_values = true)]
    tcp_connect_timeout: Option<Duration>,
    /// Whether file content on its way carries a checksum, too: it does if either end wants it
    /// [default: false].
    #[arg(long, value_name = "BOOLEAN", env = "GANNET_TCP_PAYLOAD_CHECKSUMS")]
    #[arg(help_heading = HEADING)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    tcp_payload_checksums: Option<bool>,
}

impl TcpArguments {
    /// The settings of the tcp fabric, and those of the others as they are by default.
    pub(crate) fn fabric_options(&self) -> FabricOptions {
        let mut tcp = TcpOptions::default();
        if let Some(timeout) = self.tcp_peer_timeout {
            tcp.peer_timeout = timeout;
        }
        if let Some(timeout) = self.tcp_connect_timeout {
            tcp.connect_timeout = timeout;
        }
        if let Some(wanted) = self.tcp_payload_checksums {
            tcp.payload_checksums = wanted;
        }
        FabricOptions { tcp, ..FabricOptions::default() }
    }
}

fn parse_peer_timeout(text: &str) -> Result<Duration, String> {
    within(TCP_PEER_TIMEOUT, text)
}

fn parse_connect_timeout(text: &str) -> Result<Duration, String> {
    within(TCP_CONNECT_TIMEOUT, text)
}

fn within(allowed: RangeInclusive<Duration>, text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if allowed.contains(&duration) {
        return Ok(duration);
    }
    let (least, most) = (format_duration(*allowed.start()), format_duration(*allowed.end()));
    Err(format!("{text} is out of range: {least} to {most}"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        tcp: TcpArguments,
    }

    fn parse(words: &str) -> Result<FabricOptions, String> {
        let words = std::iter::once("gannet").chain(words.split_whitespace());
        let parsed = Command::try_parse_from(words).map_err(|error| error.to_string())?;
        Ok(parsed.tcp.fabric_options())
    }

    #[test]
    fn what_is_set_arrives_and_the_rest_is_as_by_default() {
        assert_eq!(parse("").unwrap(), FabricOptions::default());
        let words = "--tcp-peer-timeout 2s --tcp-connect-timeout 1m --tcp-payload-checksums";
        let mut expected = FabricOptions::default();
        expected.tcp.peer_timeout = Duration::from_secs(2);
        expected.tcp.connect_timeout = Duration::from_secs(60);
        expected.tcp.payload_checksums = true;
        assert_eq!(parse(words).unwrap(), expected);
        assert!(parse("--tcp-payload-checksums=true").unwrap().tcp.payload_checksums);
        let off = parse("--tcp-payload-checksums=false").unwrap();
        assert_eq!(off, FabricOptions::default());
        let slow = parse("--tcp-peer-timeout=10m --tcp-connect-timeout=10ms").unwrap().tcp;
        assert_eq!(slow.peer_timeout, Duration::from_secs(600));
        assert_eq!(slow.connect_timeout, Duration::from_millis(10));
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_could() {
        for (words, hints) in [
            ("--tcp-peer-timeout 1s", &["--tcp-peer-timeout", "2s to 10m"][..]),
            ("--tcp-peer-timeout 601s", &["--tcp-peer-timeout", "2s to 10m"]),
            ("--tcp-peer-timeout 5", &["--tcp-peer-timeout", "\"10s\""]),
            ("--tcp-peer-timeout -5s", &["--tcp-peer-timeout", "\"10s\""]),
            ("--tcp-connect-timeout 9ms", &["--tcp-connect-timeout", "10ms to 1m"]),
            ("--tcp-connect-timeout 2m", &["--tcp-connect-timeout", "10ms to 1m"]),
            ("--tcp-connect-timeout=", &["--tcp-connect-timeout", "\"10s\""]),
            ("--tcp-payload-checksums=on", &["--tcp-payload-checksums", "true, false"]),
        ] {
            let refused = parse(words).unwrap_err();
            for hint in hints {
                assert!(refused.contains(hint), "{words}: {refused}");
            }
        }
    }
}
