use anyhow::Result;

/// Pretrain an encoder on a store with one or several pretext tasks
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> Result<()> {
    anyhow::bail!("being built")
}
