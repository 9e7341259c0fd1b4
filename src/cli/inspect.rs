use anyhow::Result;

/// Write what the network sees: pictures and the exact batch
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> Result<()> {
    anyhow::bail!("being built")
}
