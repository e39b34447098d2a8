//! The provider for processes on one machine.
