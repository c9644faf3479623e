//! Floor 6: one command a file.

mod addresses;
pub mod audit;
mod credentials;
pub mod dev;
pub mod drain;
mod host;
pub mod keys;
pub mod load;
pub mod manual;
mod own_addresses;
mod owner;
mod relay;
pub mod reload;
pub mod run;
mod runtime_dir;
mod sandbox;
pub mod token;

use clap::{Parser, Subcommand};

/// STUN server, TURN relay and SFU in one binary.
#[derive(Parser)]
#[command(name = "postern", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The server.
    Run(run::Args),
    /// The server without a config: self-signed, key "devkey", secret "secret", demo page.
    Dev(dev::Args),
    /// Have the running server read its config again.
    Reload(reload::Args),
    /// Have the running server end once its calls have.
    Drain(drain::Args),
    /// Mint a join token.
    Token(token::Args),
    /// Make an API key and secret.
    Keys,
    /// Simulate participants, in any number, for any server that speaks the LiveKit protocol, or users of any TURN server.
    Load(Box<load::Args>),
    /// What the audit log says of a person, and its erasure.
    Audit(audit::Args),
    /// Print what completes commands in a shell.
    Completions(manual::Completions),
    /// Print the manual page.
    Man,
}

impl Cli {
    /// Carries the command out; the error is one sentence for the person at the keyboard.
    pub fn execute(self) -> Result<(), String> {
        match self.command {
            Command::Run(args) => run::execute(&args),
            Command::Dev(args) => dev::execute(&args),
            Command::Reload(args) => reload::execute(&args),
            Command::Drain(args) => drain::execute(&args),
            Command::Token(args) => token::execute(&args),
            Command::Keys => keys::execute(),
            Command::Load(args) => load::execute(&args),
            Command::Audit(args) => audit::execute(&args),
            Command::Completions(args) => {
                manual::completions(&args);
                Ok(())
            }
            Command::Man => manual::page(),
        }
    }
}
