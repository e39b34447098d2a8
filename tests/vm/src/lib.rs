//! What tests need that run in a virtual machine with an RDMA device: processes that cannot outlive
//! or outwait their test, clusters over the guest's device, what the guest knows about itself and
//! its device, a fabric whose connections can be broken, and the tools that come with the guest.
//!
//! The tests are the files in `tests/`. They are ignored by `cargo test`; `tests/vm/test` builds
//! them and runs them in the guest, as `README.md` here describes.
#![forbid(unsafe_code)]

pub mod cluster;
pub mod guest;
pub mod process;
pub mod resources;
pub mod tracked;
pub mod wait;
