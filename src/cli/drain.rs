//! `postern drain`: the running server opens no room any more and ends once its calls have, or when the time is up.

use super::runtime_dir::{RuntimeDir, WITHIN_MAX_S};
use std::path::PathBuf;
use std::time::Duration;

#[derive(clap::Args)]
pub struct Args {
    /// The running server's TOML file.
    #[arg(long, default_value = "/etc/postern/postern.toml")]
    config: PathBuf,
    /// How long calls may go on, seconds; without it server.drain_deadline_s.
    #[arg(long, value_parser = clap::value_parser!(u64).range(..=WITHIN_MAX_S))]
    within: Option<u64>,
}

pub fn execute(args: &Args) -> Result<(), String> {
    let server = RuntimeDir::of(&args.config).drain(args.within.map(Duration::from_secs))?;
    println!("process {server} drains: it opens no room, and ends when its calls have or the time is up");
    println!("`kill {server}` ends it without waiting for calls");
    Ok(())
}
