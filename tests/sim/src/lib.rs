//! A whole Gannet cluster in one thread and virtual time, with faults
