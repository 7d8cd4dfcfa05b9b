//! The test runner for policies. No sockets, no async runtime.
