//! Opening the fabric that an address belongs to, with errors that say what helps.

use std::io::ErrorKind;

use gannet_fabric::any::{AnyFabric, FabricOptions};
use gannet_fabric::{Address, FabricError};

use crate::failure::Failure;

/// Opens the fabric for `address`.
///
/// # Errors
/// What the machine, or this build, lacks for it.
pub(crate) fn open_fabric(options: FabricOptions, address: &Address) -> Result<AnyFabric, Failure> {
    AnyFabric::new(options)
        .map_err(|error| Failure::operation(format!("{address}: {}", explain(&error))))
}

/// What happened, and what helps where the error itself does not say it.
pub(crate) fn explain(error: &FabricError) -> String {
    let remedy = match error {
        FabricError::System { source, .. } if source.kind() == ErrorKind::AddrInUse => {
            " (stop it, or listen at another address)"
        }
        FabricError::Missing(what) if !what.contains("gannet doctor") => {
            " (`gannet doctor --rdma` looks for what RDMA needs)"
        }
        _ => "",
    };
    format!("{error}{remedy}")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn what_helps_is_said_once() {
        let source = io::Error::from(ErrorKind::AddrInUse);
        let in_use = FabricError::System { what: "listening at x".to_owned(), source };
        let missing = FabricError::Missing("no RDMA device".to_owned());
        for (error, hint) in [(in_use, "another address"), (missing, "gannet doctor --rdma")] {
            assert!(explain(&error).contains(hint), "{error}");
        }
        let named = FabricError::Missing("none; `gannet doctor --rdma` tells why".to_owned());
        assert_eq!(explain(&named), named.to_string());
        let locked = FabricError::LockedMemory { len_bytes: 4096, limit_bytes: 0 };
        assert_eq!(explain(&locked), locked.to_string(), "it brings its remedy");
    }
}
