//! Gannet's host library
