//! The `usher` command.

fn main() {}
