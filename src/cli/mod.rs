//! One file a subcommand; wiring; exit codes.
//!
//! Results go to stdout (`output`), logs and progress to stderr. Exit codes: 0 good, 1 the thing asked about is bad, 2 usage or
//! cannot run.

#![allow(clippy::print_stderr)]

mod activation;
pub mod app;
mod bench;
mod check;
mod demo;
mod drain;
mod eval;
mod init;
mod logging;
mod machine;
mod notify;
mod offline;
mod output;
mod policy;
pub mod progress;
mod record;
mod replay;
mod run;
mod simulate;
mod sockets;
mod steer;
mod takeover;
mod test;
mod trace;
mod vital;
mod why;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Good.
pub const GOOD: u8 = 0;
/// The thing asked about is bad.
pub const BAD: u8 = 1;
/// Usage, or it cannot run.
pub const UNABLE: u8 = 2;

/// A programmable load balancer for servers that host rooms.
#[derive(Debug, Parser)]
#[command(name = "usher", version, about, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(flatten)]
    run: run::RunArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the balancer (what `usher` alone does)
    Run(run::RunArgs),
    /// Balancer, simulated Monoliths and traffic in one process
    Demo(demo::DemoArgs),
    /// Check a configuration and policies
    Check(check::CheckArgs),
    /// Run the tests of policies (`*_test.lua`)
    Test(test::TestArgs),
    /// Ask a policy for one decision on one call
    Eval(eval::EvalArgs),
    /// Measure what decisions of a policy cost
    Bench(bench::BenchArgs),
    /// Make every recorded decision again, by the version that made it or by another policy
    Replay(replay::ReplayArgs),
    /// Try policies on a scenario or on the traffic of a trace, in virtual time
    Simulate(simulate::SimulateArgs),
    /// Look into recorded traffic
    Trace(trace::TraceArgs),
    /// Write a configuration, a policy and its test to start from
    Init(init::InitArgs),
    /// Show how a running usher is doing
    Status(steer::AdminArgs),
    /// Show or change the policy of a running usher
    Policy(policy::PolicyArgs),
    /// Show the Monoliths of a running usher
    Monolith(steer::MonolithArgs),
    /// Show the rooms of a running usher
    Room(steer::RoomArgs),
    /// Record the traffic of a running usher
    Record(record::RecordArgs),
}

/// Where the configuration is.
#[derive(Args, Clone, Debug, Default)]
struct ConfigArgs {
    /// Configuration file; without it `usher.toml`, else `balancer.toml` here, else defaults
    #[arg(short, long = "config", visible_alias = "config-path", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let code = match cli.command {
        None => run::main(cli.run),
        Some(Command::Run(args)) => run::main(args),
        Some(Command::Demo(args)) => demo::main(&args),
        Some(Command::Check(args)) => check::main(&args),
        Some(Command::Test(args)) => test::main(&args),
        Some(Command::Eval(args)) => eval::main(&args),
        Some(Command::Bench(args)) => bench::main(&args),
        Some(Command::Replay(args)) => replay::main(&args),
        Some(Command::Simulate(args)) => simulate::main(&args),
        Some(Command::Trace(args)) => trace::main(&args),
        Some(Command::Init(args)) => init::main(&args),
        Some(Command::Status(args)) => steer::status(&args),
        Some(Command::Policy(args)) => policy::main(&args),
        Some(Command::Monolith(args)) => steer::monolith(&args),
        Some(Command::Room(args)) => steer::room(&args),
        Some(Command::Record(args)) => record::main(&args),
    };
    ExitCode::from(output::exit_code(code))
}
