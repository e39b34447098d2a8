//! Provider part: uring.
