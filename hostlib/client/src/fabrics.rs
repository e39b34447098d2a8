//! Which fabrics a client may use, of those that servers listen at.

use std::fmt;
use std::str::FromStr;

use gannet_fabric::Address;

/// The fabrics that a client may use. The address of the metadata server that a client is given is
/// used whatever is said here; this restricts the choice among the addresses that it learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fabrics {
    /// Shared memory.
    pub shm: bool,
    /// RDMA devices.
    pub rdma: bool,
    /// TCP.
    pub tcp: bool,
}

impl Fabrics {
    /// All that this version knows.
    pub const ALL: Fabrics = Fabrics { shm: true, rdma: true, tcp: true };
    const NONE: Fabrics = Fabrics { shm: false, rdma: false, tcp: false };

    /// Whether an address may be used.
    #[must_use]
    pub fn allow(self, address: &Address) -> bool {
        match address {
            Address::Shm(_) => self.shm,
            Address::Rdma { .. } => self.rdma,
            Address::Tcp { .. } => self.tcp,
        }
    }

    /// The words for those that are allowed.
    fn words(self) -> impl Iterator<Item = &'static str> {
        let all = [("shm", self.shm), ("rdma", self.rdma), ("tcp", self.tcp)];
        all.into_iter().filter_map(|(word, allowed)| allowed.then_some(word))
    }
}

impl Default for Fabrics {
    fn default() -> Fabrics {
        Fabrics::ALL
    }
}

/// A text that names no list of fabrics.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownFabrics {
    /// A word of the list is none.
    #[error("{0:?} is no fabric: name shm, rdma or tcp, or several as in \"rdma,tcp\"")]
    Word(String),
    /// A word is there twice.
    #[error("{0} is named twice")]
    Twice(String),
}

impl FromStr for Fabrics {
    type Err = UnknownFabrics;

    /// Reads a list such as `rdma,tcp`.
    fn from_str(text: &str) -> Result<Fabrics, UnknownFabrics> {
        let mut fabrics = Fabrics::NONE;
        for word in text.split(',') {
            let word = word.trim();
            let place = match word {
                "shm" => &mut fabrics.shm,
                "rdma" => &mut fabrics.rdma,
                "tcp" => &mut fabrics.tcp,
                other => return Err(UnknownFabrics::Word(other.to_owned())),
            };
            if std::mem::replace(place, true) {
                return Err(UnknownFabrics::Twice(word.to_owned()));
            }
        }
        Ok(fabrics)
    }
}

impl fmt::Display for Fabrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, word) in self.words().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            f.write_str(word)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written() {
        for (text, written, allowed, refused) in [
            ("shm", "shm", &["shm:///m"][..], &["rdma://h:1", "tcp://h:1"][..]),
            ("tcp, rdma", "rdma,tcp", &["rdma://h:1", "tcp://h:1"], &["shm:///m"]),
            ("shm,rdma,tcp", "shm,rdma,tcp", &["shm:///m", "rdma://h:1", "tcp://h:1"], &[]),
        ] {
            let fabrics: Fabrics = text.parse().unwrap();
            assert_eq!(fabrics.to_string(), written);
            let allow = |text: &&str| fabrics.allow(&text.parse().unwrap());
            assert!(allowed.iter().all(allow) && !refused.iter().any(allow), "{text}");
        }
        assert_eq!("shm,rdma,tcp".parse(), Ok(Fabrics::default()));
        for (text, hint) in [
            ("", "\"\" is no fabric"),
            ("tcp,", "\"\" is no fabric"),
            ("udp", "\"udp\" is no fabric"),
            ("TCP", "shm, rdma or tcp"),
            ("tcp,tcp", "tcp is named twice"),
        ] {
            let message = text.parse::<Fabrics>().unwrap_err().to_string();
            assert!(message.contains(hint), "{text}: {message}");
        }
    }
}
