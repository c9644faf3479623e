//! `postern reload`: the running server reads its config again; says what took effect and what waits for a restart.

use super::runtime_dir::RuntimeDir;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// The running server's TOML file.
    #[arg(long, default_value = "/etc/postern/postern.toml")]
    config: PathBuf,
}

pub fn execute(args: &Args) -> Result<(), String> {
    let outcome = RuntimeDir::of(&args.config).reload()?;
    print!("{outcome}");
    let has_failed = outcome.lines().any(|line| line.starts_with("failed"));
    if has_failed { Err("not all of it took effect; the lines above say what".into()) } else { Ok(()) }
}
