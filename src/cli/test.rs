//! temporary
use clap::Args;
/// temporary
#[derive(Args, Debug)]
pub(super) struct TestArgs {}
pub(super) fn main(_: &TestArgs) -> u8 {
    2
}
