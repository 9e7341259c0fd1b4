use anyhow::Result;

/// Turn a folder of scans into a store that training reads
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> Result<()> {
    anyhow::bail!("being built")
}
