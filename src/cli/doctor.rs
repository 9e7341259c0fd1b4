use anyhow::Result;

/// Print what a bug report needs
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> Result<()> {
    anyhow::bail!("being built")
}
