//! The client against scripted servers over a fabric of queues.

mod basic;
mod chaos;
mod fake;
mod hostile;
mod opens;
mod peer;
mod recovery;
mod routes;
mod windows;

use gannet_runtime::counting_allocator::CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;
