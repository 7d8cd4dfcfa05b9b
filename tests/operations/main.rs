//! Operation, over real sockets: reloads, the admin API, HTTP, stopping, and the process itself with its commands.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    unreachable_pub,
    reason = "tests may panic, and nobody reads their documentation page"
)]

mod admin_api;
mod admit;
mod births;
mod commands;
mod config_reload;
#[cfg(target_os = "linux")]
mod descriptors;
mod harness;
mod http_rooms;
mod http_through;
mod init;
mod lab_commands;
mod live_facts;
mod policy_commands;
mod policy_limits;
mod policy_reload;
mod policy_state;
mod policy_trials;
mod process;
mod recording;
mod replay;
mod room_list;
mod room_why;
mod simulate;
mod soak;
mod stopping;
mod takeover;
mod trace_commands;
mod walk;
