//! `usher test`: the tests of policies.

use clap::{Args, ValueEnum};
use regex::Regex;

use super::UNABLE;
use crate::lab::{self, Options};

/// The command line of `usher test`.
#[derive(Args, Debug)]
pub(super) struct TestArgs {
    /// Tests, policies, folders or shipped names; without any the tests of this folder, else of the shipped policies
    #[arg(value_name = "PATH")]
    paths: Vec<String>,
    /// Run only tests whose name matches
    #[arg(long, value_name = "RE")]
    filter: Option<String>,
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Pretty)]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For people
    Pretty,
    /// One JSON document
    Json,
}

pub(super) fn main(args: &TestArgs) -> u8 {
    let filter = match args.filter.as_deref().map(Regex::new).transpose() {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("usher: --filter: {error}");
            return UNABLE;
        }
    };
    let files = match lab::find_tests(&args.paths) {
        Ok(files) => files,
        Err(error) => {
            eprintln!("usher: {error}");
            return UNABLE;
        }
    };
    let report = lab::run_tests(&files, &Options { filter, ..Options::default() });
    match args.format {
        Format::Pretty => print!("{}", report.pretty()),
        Format::Json => match serde_json::to_string(&report) {
            Ok(json) => println!("{json}"),
            Err(error) => {
                eprintln!("usher: {error}");
                return UNABLE;
            }
        },
    }
    report.exit_code()
}
