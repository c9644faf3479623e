//! `postern token`: a join token on stdout, alone.

use super::credentials::Credentials;
use postern::control::auth::{Claims, Keys, VideoGrants};
use std::time::SystemTime;

#[derive(clap::Args)]
pub struct Args {
    /// Room to join.
    #[arg(long)]
    room: String,
    /// Who joins.
    #[arg(long)]
    identity: String,
    /// Name that others see; the identity when absent.
    #[arg(long)]
    name: Option<String>,
    /// How long the token is good, seconds.
    #[arg(long, default_value_t = 6 * 3600)]
    valid_for_s: u64,
    /// May not publish.
    #[arg(long)]
    no_publish: bool,
    /// May not subscribe.
    #[arg(long)]
    no_subscribe: bool,
    /// May not send data.
    #[arg(long)]
    no_data: bool,
    /// Not shown to others.
    #[arg(long)]
    hidden: bool,
    #[command(flatten)]
    credentials: Credentials,
}

#[allow(clippy::disallowed_methods, reason = "a command may look at the clock")]
pub fn execute(args: &Args) -> Result<(), String> {
    let keys = args.credentials.keys()?;
    let iss = keys.keys().next().cloned().ok_or("the config has no key under [keys]")?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_err(|e| format!("the clock is before 1970: {e}"))?;
    let refused = |flag: bool| flag.then_some(false);
    let video = VideoGrants {
        room_join: true,
        room: args.room.clone(),
        can_publish: refused(args.no_publish),
        can_subscribe: refused(args.no_subscribe),
        can_publish_data: refused(args.no_data),
        hidden: args.hidden,
        ..VideoGrants::default()
    };
    let claims = Claims {
        iss,
        sub: args.identity.clone(),
        name: args.name.clone().unwrap_or_else(|| args.identity.clone()),
        exp: now.as_secs() + args.valid_for_s,
        video,
        ..Claims::default()
    };
    let token = Keys::new(&keys).sign(&claims).ok_or("the token cannot be signed")?;
    println!("{token}");
    Ok(())
}
