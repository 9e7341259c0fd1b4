use anyhow::Result;

/// Write a run's encoder as TorchScript, safetensors and JSON
#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> Result<()> {
    anyhow::bail!("being built")
}
