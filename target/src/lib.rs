//! The data server: grants in, block I/O and one-sided transfers out
