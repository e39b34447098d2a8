//! Provider part: lock.
