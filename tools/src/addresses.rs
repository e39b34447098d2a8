//! The addresses that follow from others.

use gannet_fabric::{Address, AddressError};

/// Where a reactor of the metadata server listens, given the address of reactor 0: a suffix tells
/// the others apart.
///
/// # Errors
/// As [`Address::shm`]: the suffix may make the path too long.
pub(crate) fn reactor_address(first: &Address, reactor: usize) -> Result<Address, AddressError> {
    if reactor == 0 {
        return Ok(first.clone());
    }
    match first {
        Address::Shm(path) => {
            let mut path = path.clone().into_os_string();
            path.push(format!(".{reactor}"));
            Address::shm(path)
        }
        Address::Rdma { host, port } => {
            let port = u16::try_from(usize::from(*port) + reactor)
                .map_err(|_| AddressError::NoHostAndPort(first.to_string()))?;
            Ok(Address::Rdma { host: host.clone(), port })
        }
    }
}
