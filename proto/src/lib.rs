//! Gannet's wire protocol: messages, limits and session state machines
