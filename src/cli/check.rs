//! `usher check`: a configuration and policies, without starting anything.

use std::sync::Arc;

use clap::Args;

use super::output::{say, show};
use super::{BAD, ConfigArgs, GOOD};
use crate::config::{self, Config, PolicySource};
use crate::control::policies;
use crate::lab;
use crate::policy::lua::Source;
use crate::policy::shipped;

/// The command line of `usher check`.
#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
    /// A policy to check: a path or a shipped name; may be given more than once
    #[arg(long, value_name = "P")]
    pub(super) policy: Vec<String>,
}

pub(super) fn main(args: &CheckArgs) -> u8 {
    let mut problems: Vec<String> = Vec::new();
    let mut sources: Vec<Source> = Vec::new();
    let mut take = |source: Result<Source, crate::policy::lua::LoadError>| match source {
        Ok(source) => {
            sources.push(source);
            None
        }
        Err(error) => Some(error.to_string()),
    };
    let mut checked = Config::default();
    let request = config::Request::of_process(args.config.config.clone());
    match config::load(&request) {
        Ok(loaded) => {
            let missing = loaded.missing_policy();
            for warning in loaded.warnings.iter().filter(|warning| Some(*warning) != missing) {
                eprintln!("warning: {warning}");
            }
            problems.extend(match (missing, &loaded.config.policy.source) {
                // A start would be served by its last good version at best.
                (Some(missing), _) => Some(missing.to_string()),
                (None, PolicySource::Shipped(name)) => take(shipped::resolve(name)),
                (None, PolicySource::File(path)) => take(Source::read(path)),
            });
            checked = loaded.config;
        }
        Err(errors) => problems.push(errors.to_string()),
    }
    for policy in &args.policy {
        problems.extend(take(shipped::resolve(policy)));
    }
    let environment = policies::environment(&checked.policy, &checked, &Arc::default());
    for source in &sources {
        for problem in lab::check_policy(source, &environment) {
            if problem.warning {
                eprintln!("warning: {problem}");
            } else {
                problems.push(problem.to_string());
            }
        }
    }
    for problem in &problems {
        show!("{problem}\n");
    }
    if problems.is_empty() {
        say!("good");
        GOOD
    } else {
        BAD
    }
}
