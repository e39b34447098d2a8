//! The metadata server: log and channels around the core
