//! The config, read again while the server runs: what takes effect at once, and what waits for the next start.

use super::auth::Keys;
use super::certs::Certificates;
use super::metrics::Gauges;
use super::signal::{Front, Policy};
use crate::config::{Config, Peers, TlsMode, Turn};
use arc_swap::ArcSwap;
use std::fmt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tokio::sync::Notify;

/// Sets the log's level.
pub type SetLevel = Box<dyn Fn(&str) + Send + Sync>;

/// Gives the workers the relay's settings.
pub type SetRelay = Box<dyn Fn(&Config) -> Result<(), String> + Send + Sync>;

/// What a running server is made of, as far as it changes.
pub struct Running {
    pub front: Arc<Front>,
    pub keys: Keys,
    pub certificates: Arc<Certificates>,
    pub set_level: SetLevel,
    pub set_relay: SetRelay,
    pub gauges: Arc<Gauges>,
    /// A certificate that could not be ordered is to be tried again.
    pub hurry: Arc<Notify>,
    /// The API key that signs webhooks; empty is the first one.
    pub signer: Arc<ArcSwap<String>>,
    pub admin_token: Arc<ArcSwap<String>>,
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
        let mut merged = config.clone();
        take_over(&mut merged, new);
        // What waits for a restart may not fit what does not.
        if let Err(error) = merged.check() {
            outcome.failed.push(format!("together with what waits for a restart: {error}"));
            return outcome;
        }
        match self.certificates.reload(&merged.tls) {
            Ok(true) => outcome.applied.push("the certificate".into()),
            Ok(false) => {}
            Err(why) => {
                merged.tls.clone_from(&config.tls);
                outcome.failed.push(why);
            }
        }
        outcome.applied.extend(config.changed(&merged));
        // What is neither in force nor failed waits.
        let is_cert = |key: &String| !outcome.failed.is_empty() && (key == "tls.cert_file" || key == "tls.key_file");
        outcome.waits = merged.changed(new).into_iter().filter(|key| !is_cert(key)).collect();
        *config = merged;
        self.signer.store(Arc::new(config.webhooks.api_key.clone()));
        self.admin_token.store(Arc::new(config.admin.token.clone()));
        self.keys.replace(&config.keys);
        self.front.policy.store(Arc::new(Policy::of(&config)));
        self.front.by_address.set(config.limits.joins_per_second_per_address);
        self.front.by_identity.set(config.limits.joins_per_second_per_identity);
        self.front.rooms().reconfigure(&config.rooms, config.limits.tracks_per_participant);
        (self.set_level)(&config.log.level);
        if let Err(why) = (self.set_relay)(&config) {
            outcome.failed.push(format!("the relay goes on as it was: {why}"));
        }
        self.hurry.notify_one();
        drop(config);
        self.report_certificate();
        outcome
    }

    /// The settings that are in force.
    pub fn config(&self) -> Config {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// This host has other addresses than it had: what the relay keeps closed follows. Whether it could.
    pub fn readdress(&self) -> bool {
        let outcome = (self.set_relay)(&self.config.lock().unwrap_or_else(PoisonError::into_inner));
        if let Err(error) = &outcome {
            tracing::warn!(%error, "the relay does not know this host's new addresses yet");
        }
        outcome.is_ok()
    }

    /// Whether the relay talks to others than the SFU.
    pub fn is_relay_open(&self) -> bool {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).turn.peers != Peers::Named("sfu-only".into())
    }

    /// Takes a certificate that was written anew by whoever renews it.
    pub fn follow_files(&self) {
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.certificates.have_changed(&config.tls) {
            return;
        }
        match self.certificates.reload(&config.tls) {
            Ok(_) => tracing::info!("the certificate's files have changed and were read again"),
            Err(error) => tracing::error!(%error, "the certificate's files have changed and do not fit; the old one stays"),
        }
        drop(config);
        self.report_certificate();
    }

    /// Says in the log what is wrong with the certificate, or soon will be.
    #[allow(clippy::disallowed_methods, reason = "the control plane may look at the clock")]
    pub fn report_certificate(&self) {
        let (domain, is_ordered) = {
            let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
            (config.server.domain.clone(), config.tls.mode == TlsMode::Acme)
        };
        let mut found = self.certificates.findings(&domain, SystemTime::now());
        let expires = found.expires.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        self.gauges.certificate_expires.store(expires.map_or(0, |at| at.as_secs() as i64), Relaxed);
        if is_ordered {
            // Whoever orders it says what is wrong, and renews it.
            (found.problems, found.warnings) = (Vec::new(), Vec::new());
        }
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
    // The mode is the one of the start.
    if new.tls.mode == config.tls.mode {
        config.tls.cert_file.clone_from(&new.tls.cert_file);
        config.tls.key_file.clone_from(&new.tls.key_file);
    }
    config.webhooks.api_key.clone_from(&new.webhooks.api_key);
    config.keys.clone_from(&new.keys);
    config.rooms.clone_from(&new.rooms);
    config.admin.token.clone_from(&new.admin.token);
    // Everything of the relay but what credentials that are out were made for, and its ports.
    let (realm, relay_ports) = (config.turn.realm.clone(), config.turn.relay_ports);
    config.turn = Turn { realm, relay_ports, ..new.turn.clone() };
    config.log.level.clone_from(&new.log.level);
    let (limits, wanted) = (&mut config.limits, &new.limits);
    limits.joins_per_second_per_address = wanted.joins_per_second_per_address;
    limits.joins_per_second_per_identity = wanted.joins_per_second_per_identity;
    limits.message_bytes = wanted.message_bytes;
    limits.join_request_bytes = wanted.join_request_bytes;
    limits.tracks_per_participant = wanted.tracks_per_participant;
    limits.allocations_per_worker = wanted.allocations_per_worker;
    limits.allocations_per_address = wanted.allocations_per_address;
    limits.permissions_per_allocation = wanted.permissions_per_allocation;
    limits.channels_per_allocation = wanted.channels_per_allocation;
    limits.relay_bytes_per_second_per_allocation = wanted.relay_bytes_per_second_per_allocation;
    limits.relay_bytes_per_second = wanted.relay_bytes_per_second;
    limits.stun_answers_per_second_per_network = wanted.stun_answers_per_second_per_network;
    limits.stun_answers_per_second = wanted.stun_answers_per_second;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys that take effect at once; those that end with a dot stand for their section.
    const LIVE: [&str; 33] = [
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
        "limits.allocations_per_worker",
        "limits.allocations_per_address",
        "limits.permissions_per_allocation",
        "limits.channels_per_allocation",
        "limits.relay_bytes_per_second_per_allocation",
        "limits.relay_bytes_per_second",
        "limits.stun_answers_per_second_per_network",
        "limits.stun_answers_per_second",
        "turn.peers",
        "turn.denied_peers",
        "turn.shared_secrets",
        "turn.users",
        "turn.realms",
        "turn.hidden_usernames",
        "turn.strict_expiry",
        "turn.binding_over_tcp",
        "turn.allocations_per_user",
        "turn.older_channel_numbers",
        "turn.alternate_servers",
        "webhooks.api_key",
        "admin.token",
        "log.level",
    ];

    fn is_live(key: &str) -> bool {
        LIVE.iter().any(|live| key == *live || (live.ends_with('.') && key.starts_with(live)))
    }

    #[test]
    fn what_is_called_live_is_what_is_taken_over() {
        let text = |domain: &str, n: u32| {
            let is_two = n == 2;
            format!(
                "[server]\ndomain = \"{domain}\"\nworkers = {n}\nallowed_origins = [\"https://{domain}\"]\ndrain_deadline_s = {n}\n[tls]\ncert_file = \"{domain}\"\nkey_file = \"{domain}\"\nstate_dir = \"{domain}\"\n[keys]\nk = \"{domain}\"\n[rooms]\nparticipants_max = {n}\n[limits]\njoins_per_second_per_address = {n}\njoins_per_second_per_identity = {n}\nmessage_bytes = {n}\njoin_request_bytes = {n}\ntracks_per_participant = {n}\nconnections_per_worker = {n}\nallocations_per_worker = {n}\nallocations_per_address = {n}\npermissions_per_allocation = {n}\nchannels_per_allocation = {n}\nrelay_bytes_per_second_per_allocation = {n}\nrelay_bytes_per_second = {n}\nstun_answers_per_second_per_network = {n}\nstun_answers_per_second = {n}\n[turn]\nrealm = \"{domain}\"\npeers = [\"10.{n}.0.0/16\"]\ndenied_peers = [\"10.{n}.0.0/16\"]\nrelay_ports = [500{n}0, 60000]\nshared_secrets = [\"{domain}\"]\nusers = {{ u = \"{domain}\" }}\nhidden_usernames = {is_two}\nstrict_expiry = {is_two}\nbinding_over_tcp = {is_two}\nolder_channel_numbers = {is_two}\nallocations_per_user = {n}\nalternate_servers = [\"192.0.2.{n}:3478\"]\nrealms = {{ \"r{n}\" = {{}} }}\n[admin]\ntoken = \"{n}-is-long-enough-for-it\"\n[audit]\nretention_days = {n}\n"
            )
        };
        let (old, new) =
            (Config::parse(&text("a.example", 1)).expect("well-formed"), Config::parse(&text("b.example", 2)).expect("well-formed"));
        let mut taken = old.clone();
        take_over(&mut taken, &new);
        let left = taken.changed(&new);
        assert_eq!(
            left,
            [
                "audit.retention_days",
                "limits.connections_per_worker",
                "server.domain",
                "server.workers",
                "tls.state_dir",
                "turn.realm",
                "turn.relay_ports"
            ]
        );
        for key in old.changed(&new) {
            assert_eq!(is_live(&key), !left.contains(&key), "{key}");
        }
        let other_mode = Config::parse(&text("b.example", 2).replace("[tls]", "[tls]\nmode = \"self-signed\"")).expect("well-formed");
        take_over(&mut taken, &old);
        take_over(&mut taken, &other_mode);
        assert_eq!(taken.tls.cert_file, old.tls.cert_file, "files of another mode are not looked for");
    }
}
