//! The config, read again while the server runs: what takes effect at once, and what waits for the next start.

use super::auth::Keys;
use super::certs::Certificates;
use super::signal::{Front, Policy};
use crate::config::Config;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Keys that take effect at once; those that end with a dot stand for their section.
const LIVE: [&str; 12] = [
    "server.allowed_origins",
    "server.drain_deadline_s",
    "tls.cert_file",
    "tls.key_file",
    "keys.",
    "rooms.",
    "limits.joins_per_second_per_address",
    "limits.joins_per_second_per_identity",
    "limits.message_bytes",
    "limits.join_request_bytes",
    "limits.tracks_per_participant",
    "log.level",
];

fn is_live(key: &str) -> bool {
    LIVE.iter().any(|live| key == *live || (live.ends_with('.') && key.starts_with(live)))
}
/// Sets the log's level.
pub type SetLevel = Box<dyn Fn(&str) + Send + Sync>;

/// What a running server is made of, as far as it changes.
pub struct Running {
    pub front: Arc<Front>,
    pub keys: Keys,
    pub certificates: Arc<Certificates>,
    /// Names of a self-signed certificate.
    pub names: Vec<String>,
    pub set_level: SetLevel,
    pub config: Mutex<Config>,
}

/// What became of new settings.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub applied: Vec<String>,
    pub waits: Vec<String>,
    /// Why something stayed as it was.
    pub failed: Vec<String>,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (title, rows) in
            [("applied", &self.applied), ("waits for a restart", &self.waits), ("failed, the old value stays", &self.failed)]
        {
            for row in rows {
                writeln!(f, "{title}: {row}")?;
            }
        }
        if self.applied.is_empty() && self.waits.is_empty() && self.failed.is_empty() {
            writeln!(f, "nothing has changed")?;
        }
        Ok(())
    }
}

impl Running {
    /// Applies what can change, and the certificate anew.
    pub fn reload(&self, new: &Config) -> Outcome {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        let mut outcome = Outcome::default();
        for key in config.changed(new) {
            if is_live(&key) { outcome.applied.push(key) } else { outcome.waits.push(key) }
        }
        take_over(&mut config, new);
        self.keys.replace(&config.keys);
        self.front.policy.store(Arc::new(Policy::of(&config)));
        self.front.by_address.set(config.limits.joins_per_second_per_address);
        self.front.by_identity.set(config.limits.joins_per_second_per_identity);
        self.front.rooms().reconfigure(&config.rooms, config.limits.tracks_per_participant);
        (self.set_level)(&config.log.level);
        match self.certificates.reload(&config.tls, &self.names) {
            Ok(true) => outcome.applied.push("the certificate".into()),
            Ok(false) => {}
            Err(why) => outcome.failed.push(why),
        }
        self.report_certificate(&config.server.domain);
        outcome
    }

    /// Takes a certificate that was written anew by whoever renews it.
    pub fn follow_files(&self) {
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.certificates.have_changed(&config.tls) {
            return;
        }
        match self.certificates.reload(&config.tls, &self.names) {
            Ok(_) => tracing::info!("the certificate's files have changed and were read again"),
            Err(error) => tracing::error!(%error, "the certificate's files have changed and do not fit; the old one stays"),
        }
        self.report_certificate(&config.server.domain);
    }

    /// Says in the log what is wrong with the certificate, or soon will be.
    #[allow(clippy::disallowed_methods, reason = "the control plane may look at the clock")]
    pub fn report_certificate(&self, domain: &str) {
        let found = self.certificates.findings(domain, SystemTime::now());
        found.problems.iter().for_each(|problem| tracing::error!("{problem}"));
        found.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    }

    pub fn drain_deadline_s(&self) -> u32 {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).server.drain_deadline_s
    }
}

/// What takes effect at once, from the new settings.
fn take_over(config: &mut Config, new: &Config) {
    config.server.allowed_origins.clone_from(&new.server.allowed_origins);
    config.server.drain_deadline_s = new.server.drain_deadline_s;
    config.tls.cert_file.clone_from(&new.tls.cert_file);
    config.tls.key_file.clone_from(&new.tls.key_file);
    config.keys.clone_from(&new.keys);
    config.rooms.clone_from(&new.rooms);
    config.log.level.clone_from(&new.log.level);
    let (limits, wanted) = (&mut config.limits, &new.limits);
    limits.joins_per_second_per_address = wanted.joins_per_second_per_address;
    limits.joins_per_second_per_identity = wanted.joins_per_second_per_identity;
    limits.message_bytes = wanted.message_bytes;
    limits.join_request_bytes = wanted.join_request_bytes;
    limits.tracks_per_participant = wanted.tracks_per_participant;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_called_live_is_what_is_taken_over() {
        let text = |domain: &str, n: u32| {
            format!(
                "[server]\ndomain = \"{domain}\"\nworkers = {n}\nallowed_origins = [\"https://{domain}\"]\ndrain_deadline_s = {n}\n[tls]\ncert_file = \"{domain}\"\nkey_file = \"{domain}\"\nstate_dir = \"{domain}\"\n[keys]\nk = \"{domain}\"\n[rooms]\nparticipants_max = {n}\n[limits]\njoins_per_second_per_address = {n}\njoins_per_second_per_identity = {n}\nmessage_bytes = {n}\njoin_request_bytes = {n}\ntracks_per_participant = {n}\nconnections_per_worker = {n}\n"
            )
        };
        let (old, new) =
            (Config::parse(&text("a.example", 1)).expect("well-formed"), Config::parse(&text("b.example", 2)).expect("well-formed"));
        let mut taken = old.clone();
        take_over(&mut taken, &new);
        let left = taken.changed(&new);
        assert_eq!(left, ["limits.connections_per_worker", "server.domain", "server.workers", "tls.state_dir"]);
        for key in old.changed(&new) {
            assert_eq!(is_live(&key), !left.contains(&key), "{key}");
        }
    }
}
