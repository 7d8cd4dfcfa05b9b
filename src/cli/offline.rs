//! What the commands share that ask a policy without running a balancer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};

use crate::config::{self, Config};
use crate::control::policies;
use crate::lab::page::Page;
use crate::lab::page_html;
use crate::model::policy::Hook;
use crate::policy::lua::Environment;

/// Which policy, and in which surroundings.
#[derive(Args, Debug)]
pub(super) struct PolicyAlone {
    /// The policy: a path or a shipped name
    #[arg(long, value_name = "P")]
    pub(super) policy: String,
    /// A configuration whose limits, settings and regions the policy gets; without it the defaults
    #[arg(short, long = "config", visible_alias = "config-path", value_name = "FILE")]
    config: Option<PathBuf>,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Pretty)]
    pub(super) format: Format,
}

/// How a result is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people
    Pretty,
    /// One JSON document
    Json,
}

impl PolicyAlone {
    /// What the policy may know and use.
    pub(super) fn environment(&self) -> Result<Environment, String> {
        environment(self.config.as_deref())
    }
}

/// What policies may know and use under this configuration, or under the defaults.
pub(super) fn environment(config: Option<&Path>) -> Result<Environment, String> {
    let config = config.map(configuration).transpose()?.unwrap_or_default();
    Ok(policies::environment(&config.policy, &config, &Arc::default()))
}

/// The configuration in this file; what is odd about it is said.
pub(super) fn configuration(path: &Path) -> Result<Config, String> {
    let request = config::Request::of_process(Some(path.to_path_buf()));
    let loaded = config::load(&request).map_err(|e| e.to_string())?;
    for warning in &loaded.warnings {
        eprintln!("warning: {warning}");
    }
    Ok(loaded.config)
}

/// The hook of this name, for the command line.
pub(super) fn hook(name: &str) -> Result<Hook, String> {
    let known = Hook::ALL.map(Hook::name).join(", ");
    Hook::ALL.into_iter().find(|hook| hook.name() == name).ok_or_else(|| format!("no such hook; give one of {known}"))
}

/// Finds out before a long run whether its report can be written. What stands there is left alone.
pub(super) fn can_report(to: Option<&Path>) -> Result<(), String> {
    let Some(to) = to else { return Ok(()) };
    let is_new = to.symlink_metadata().is_err();
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(to);
    opened.map_err(|error| format!("{}: the report cannot be written: {error}", to.display()))?;
    if is_new {
        // An empty file would be taken for a report; that it stays says nothing against writing one.
        let _ = std::fs::remove_file(to);
    }
    Ok(())
}

/// Writes a report as a page of its own, if one is wanted.
pub(super) fn write_report(to: Option<&Path>, page: impl FnOnce() -> Page) -> Result<(), String> {
    let Some(to) = to else { return Ok(()) };
    let html = page_html::render(&page());
    std::fs::write(to, html).map_err(|error| format!("{}: the report cannot be written: {error}", to.display()))
}
