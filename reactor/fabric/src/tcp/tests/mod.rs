//! The parts of the provider that make no system call, alone and against each other.

mod regions;
mod stream;
mod transfers;
mod wire;
