//! temporary
use clap::Args;
/// temporary
#[derive(Args, Debug)]
pub(super) struct DemoArgs {}
pub(super) fn main(_: &DemoArgs) -> u8 {
    2
}
