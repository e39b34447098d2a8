//! Conformance suites: every fabric provider, and the claims
