//! `usher trace`: looks into recorded traffic.

use clap::{Args, Subcommand};

use super::why;

/// `usher trace`.
#[derive(Args, Debug)]
pub(super) struct TraceArgs {
    #[command(subcommand)]
    command: TraceCommand,
}

#[derive(Debug, Subcommand)]
enum TraceCommand {
    /// Tell the story of a room
    Why(why::TracedArgs),
}

pub(super) fn main(args: &TraceArgs) -> u8 {
    match &args.command {
        TraceCommand::Why(args) => why::traced(args),
    }
}
