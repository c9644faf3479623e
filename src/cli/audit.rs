//! `postern audit`: what the audit log says of one person, and its erasure (GDPR, articles 15 and 17).

use super::owner::become_owner;
use postern::control::audit::{Subject, erase, show};
use std::io::Write;
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Print a person's entries, oldest first.
    Show(Whom),
    /// Erase a person's entries. The server may go on running.
    Erase(Whom),
}

#[derive(clap::Args)]
struct Whom {
    /// The identity, as tokens name it.
    #[arg(long)]
    identity: String,
    /// Only in this room.
    #[arg(long)]
    room: Option<String>,
    /// The TOML file, for audit.dir.
    #[arg(long, default_value = "/etc/postern/postern.toml")]
    config: PathBuf,
}

pub fn execute(args: &Args) -> Result<(), String> {
    let (What::Show(whom) | What::Erase(whom)) = &args.what;
    let config = super::run::read_config(&whom.config)?;
    let dir = config.audit.dir().ok_or_else(|| format!("{}: audit.dir is empty: no audit log is kept", whom.config.display()))?;
    become_owner("audit.dir", dir)?;
    let subject = Subject { identity: &whom.identity, room: whom.room.as_deref() };
    match &args.what {
        What::Show(_) => {
            let mut out = std::io::stdout().lock();
            show(dir, &subject, &mut out)?;
            out.flush().map_err(|e| e.to_string())
        }
        What::Erase(_) => {
            println!("{} entries erased", erase(dir, &subject)?);
            Ok(())
        }
    }
}
