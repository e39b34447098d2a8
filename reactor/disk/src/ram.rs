//! Provider part: ram.
