//! The addresses that follow from others.

use gannet_fabric::{Address, AddressError};

/// Where a reactor of the metadata server listens, given the address of reactor 0: a suffix tells
/// the others apart.
///
/// # Errors
/// As [`Address::shm`]: the suffix may make the path too long.
pub(crate) fn reactor_address(first: &Address, reactor: usize) -> Result<Address, AddressError> {
    let Address::Shm(path) = first;
    if reactor == 0 {
        return Ok(first.clone());
    }
    let mut path = path.clone().into_os_string();
    path.push(format!(".{reactor}"));
    Address::shm(path)
}
