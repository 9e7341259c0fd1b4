use anyhow::Result;

/// Write generated scans, with labels, in the layout of a public dataset
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> Result<()> {
    anyhow::bail!("being built")
}
