//! The binary: commands only. Start reading at `lib.rs`.

mod cli;

use clap::Parser;
use std::process::ExitCode;

/// What is freed is wiped: passwords, keys and tokens do not outlive their use, nor the config that a reload has replaced.
#[global_allocator]
static HEAP: zeroizing_alloc::ZeroAlloc<std::alloc::System> = zeroizing_alloc::ZeroAlloc(std::alloc::System);

fn main() -> ExitCode {
    match cli::Cli::parse().execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("postern: {error}");
            ExitCode::FAILURE
        }
    }
}
