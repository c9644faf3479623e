//! `postern drain`: the running server opens no room any more and ends once its calls have, or when the time is up.

use super::run::read_config;
use super::runtime_dir::RuntimeDir;
use std::path::PathBuf;
use std::time::Duration;

#[derive(clap::Args)]
pub struct Args {
    /// The running server's TOML file.
    #[arg(long, default_value = "/etc/postern/postern.toml")]
    config: PathBuf,
    /// How long calls may go on, seconds; without it server.drain_deadline_s.
    #[arg(long)]
    within: Option<u64>,
}

pub fn execute(args: &Args) -> Result<(), String> {
    let config = read_config(&args.config)?;
    let server = RuntimeDir::new(&config.server.runtime_dir).drain(args.within.map(Duration::from_secs))?;
    println!("process {server} drains: it opens no room, and ends when its calls have or the time is up");
    println!("`kill {server}` (or `systemctl stop postern`) ends it at once");
    Ok(())
}
