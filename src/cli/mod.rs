//! One file a subcommand; wiring; exit codes.
