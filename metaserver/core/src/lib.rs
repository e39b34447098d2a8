//! The metadata state machine: shards, namespace, extents, allocation
