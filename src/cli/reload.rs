//! `postern reload`: the running server reads its config again; says what took effect and what waits for a restart.

use super::run::read_config;
use super::runtime_dir::RuntimeDir;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// The running server's TOML file.
    #[arg(long, default_value = "/etc/postern/postern.toml")]
    config: PathBuf,
}

pub fn execute(args: &Args) -> Result<(), String> {
    // What is wrong is said here, before anybody is disturbed.
    let config = read_config(&args.config)?;
    let outcome = RuntimeDir::new(&config.server.runtime_dir).reload()?;
    print!("{outcome}");
    if outcome.contains("failed") { Err("the running server kept some of its old settings".into()) } else { Ok(()) }
}
