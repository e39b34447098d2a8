//! What tests need that run in a virtual machine with an RDMA device: processes that cannot outlive
//! or outwait their test, what the guest knows about itself, and the tools that come with it.
//!
//! The tests are the files in `tests/`. They are ignored by `cargo test`; `tests/vm/test` builds
//! them and runs them in the guest, as `README.md` here describes.
#![forbid(unsafe_code)]

pub mod guest;
pub mod process;
pub mod wait;
