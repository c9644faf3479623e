//! The settings of a server: read, checked, complete. One TOML file, over which the environment comes; unknown keys and
//! impossible values are refused with the place, what was found, what is accepted and what to do.

mod reading;

pub use reading::{ConfigError, Place};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub server: Server,
    pub network: Network,
    pub tls: Tls,
    /// API key = secret.
    pub keys: BTreeMap<String, String>,
    pub turn: Turn,
    pub rooms: Rooms,
    pub limits: Limits,
    pub webhooks: Webhooks,
    pub admin: Admin,
    pub audit: Audit,
    pub log: Log,
}

const SECTIONS: [&str; 11] = ["server", "network", "tls", "keys", "turn", "rooms", "limits", "webhooks", "admin", "audit", "log"];

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Public name; the certificate and all URLs use it.
    pub domain: String,
    /// Worker threads; 0 is one per core.
    pub workers: u8,
    /// Web origins whose pages may use the server, such as "https://app.example.eu"; empty is every one. Its own page always may.
    pub allowed_origins: Vec<String>,
    /// How long calls may go on when the server is told to end, seconds.
    pub drain_deadline_s: u32,
    /// Where the running server leaves its process id, for `postern reload` and `postern drain`.
    pub runtime_dir: PathBuf,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            domain: "localhost".into(),
            workers: 0,
            allowed_origins: Vec::new(),
            drain_deadline_s: 30,
            runtime_dir: "/run/postern".into(),
        }
    }
}

/// An address that clients are told: an address of this host, or one that a NAT in front maps to it one to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged, expecting = "not an IP address such as \"203.0.113.7\", nor { private = \"10.0.0.5\", public = \"203.0.113.7\" }")]
pub enum PublicAddress {
    Own(IpAddr),
    Mapped { private: IpAddr, public: IpAddr },
}

impl PublicAddress {
    pub fn public(self) -> IpAddr {
        match self {
            Self::Own(ip) | Self::Mapped { public: ip, .. } => ip,
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Network {
    pub bind_addresses: Vec<IpAddr>,
    /// What clients are told; empty is the bound interfaces' own addresses.
    pub public_addresses: Vec<PublicAddress>,
    pub edge_tcp_ports: Vec<u16>,
    pub media_udp_port: u16,
    /// STUN and TURN, UDP and TCP.
    pub turn_ports: Vec<u16>,
    /// Networks that may name the client in a PROXY header.
    pub trusted_proxies: Vec<String>,
}

impl Default for Network {
    fn default() -> Self {
        Self {
            bind_addresses: vec![IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)],
            public_addresses: Vec::new(),
            edge_tcp_ports: vec![443],
            media_udp_port: 443,
            turn_ports: vec![3478],
            trusted_proxies: Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TlsMode {
    Files,
    Acme,
    SelfSigned,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tls {
    pub mode: TlsMode,
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
    /// Where a self-signed authority, and what was ordered by ACME, is kept between runs.
    pub state_dir: PathBuf,
    /// Where certificates are ordered (RFC 8555), and with which authorities that place itself is trusted: the system's, unless a
    /// PEM file is named.
    pub acme_directory: String,
    pub acme_ca_file: Option<PathBuf>,
    /// Mail addresses that the authority may write to.
    pub acme_contact: Vec<String>,
    pub acme_challenge: Challenge,
}

/// How we prove to a certificate authority that a name is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Challenge {
    /// On port 443 (RFC 8737).
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
    /// On port 80 (RFC 8555 §8.3).
    #[serde(rename = "http-01")]
    Http01,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            mode: TlsMode::Files,
            cert_file: "/etc/postern/tls/fullchain.pem".into(),
            key_file: "/etc/postern/tls/privkey.pem".into(),
            state_dir: "/var/lib/postern".into(),
            acme_directory: "https://acme-v02.api.letsencrypt.org/directory".into(),
            acme_ca_file: None,
            acme_contact: Vec::new(),
            acme_challenge: Challenge::TlsAlpn01,
        }
    }
}

/// Whom the relay talks to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged, expecting = "neither \"sfu-only\", \"public\" or a list of networks such as [\"10.20.0.0/16\"]")]
pub enum Peers {
    Named(String),
    Networks(Vec<String>),
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Turn {
    /// Empty is `server.domain`.
    pub realm: String,
    pub peers: Peers,
    pub denied_peers: Vec<String>,
    pub relay_ports: [u16; 2],
    /// REST credentials; several while they rotate.
    pub shared_secrets: Vec<String>,
    pub users: HashMap<String, String>,
    /// Further realms by their names. A TLS client that asks for a realm's name is asked for its credentials.
    pub realms: BTreeMap<String, Realm>,
    /// Static users may send a hash in place of their name (RFC 8489 §9.2).
    pub hidden_usernames: bool,
    /// Credentials that expire are not even good for what they have opened: Refresh and the rest are refused too.
    pub strict_expiry: bool,
    /// STUN Binding over TCP without TLS is answered; otherwise refused with 403.
    pub binding_over_tcp: bool,
    pub allocations_per_user: usize,
    /// Channels up to 0x7FFE, as RFC 5766 had them, instead of 0x4FFF (RFC 8656 §12).
    pub older_channel_numbers: bool,
    /// Where new clients are sent while the server drains.
    pub alternate_servers: Vec<SocketAddr>,
}

/// Who is known in one more realm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Realm {
    pub shared_secrets: Vec<String>,
    pub users: HashMap<String, String>,
}

impl Default for Turn {
    fn default() -> Self {
        Self {
            realm: String::new(),
            peers: Peers::Named("sfu-only".into()),
            denied_peers: Vec::new(),
            relay_ports: [49152, 65535],
            shared_secrets: Vec::new(),
            users: HashMap::new(),
            realms: BTreeMap::new(),
            hidden_usernames: false,
            strict_expiry: false,
            binding_over_tcp: true,
            allocations_per_user: 16,
            older_channel_numbers: false,
            alternate_servers: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rooms {
    /// Rooms come into being with their first participant.
    pub auto_create: bool,
    pub participants_max: u32,
    /// How long a room stays that nobody has joined, and one that everybody has left, seconds.
    pub empty_timeout_s: u32,
    pub departure_timeout_s: u32,
    /// The room service may unmute participants; muting it always may.
    pub enable_remote_unmute: bool,
    /// A room stays on one worker until it has so many streams there: a quarter of what a core forwards.
    pub streams_together: usize,
}

impl Default for Rooms {
    fn default() -> Self {
        Self {
            auto_create: true,
            participants_max: 500,
            empty_timeout_s: 300,
            departure_timeout_s: 20,
            enable_remote_unmute: false,
            streams_together: 600,
        }
    }
}

/// Every maximum. Above it stands a named refusal, never growth.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Joins per second from one address, and how many at once.
    pub joins_per_second_per_address: u32,
    /// The same of one participant, by room and identity.
    pub joins_per_second_per_identity: u32,
    pub message_bytes: usize,
    /// A join request after inflation.
    pub join_request_bytes: usize,
    pub tracks_per_participant: usize,
    /// TCP connections of one worker.
    pub connections_per_worker: usize,
    /// Of those, of one address; and its HTTP connections on all workers, until they become WebSockets.
    pub connections_per_address: usize,
    /// Of those of one address on one worker, that have not told what they are.
    pub half_open_per_address: usize,
    pub allocations_per_worker: usize,
    /// Allocations of one source address, all workers together; 0 is no limit.
    pub allocations_per_address: usize,
    pub permissions_per_allocation: usize,
    pub channels_per_allocation: usize,
    /// What may be relayed to and from peers other than the SFU, of one allocation and of all; 0 is no limit.
    pub relay_bytes_per_second_per_allocation: u64,
    pub relay_bytes_per_second: u64,
    /// Answers to those who are not authenticated: Binding, challenges. Of one IPv4 /24 or IPv6 /64, and of all; 0 is no limit.
    pub stun_answers_per_second_per_network: u64,
    pub stun_answers_per_second: u64,
    /// Packet buffers that each worker keeps ready, 2 KiB each.
    pub packet_buffers_per_worker: usize,
    /// Memory for packets that may have to be sent again, of all workers together.
    pub packet_store_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            joins_per_second_per_address: 100,
            joins_per_second_per_identity: 10,
            message_bytes: 2 * 1024 * 1024,
            join_request_bytes: 1024 * 1024,
            tracks_per_participant: 32,
            connections_per_worker: 8192,
            connections_per_address: 4096,
            half_open_per_address: 64,
            allocations_per_worker: 65_536,
            allocations_per_address: 0,
            permissions_per_allocation: 64,
            channels_per_allocation: 16,
            relay_bytes_per_second_per_allocation: 0,
            relay_bytes_per_second: 0,
            stun_answers_per_second_per_network: 200,
            stun_answers_per_second: 50_000,
            packet_buffers_per_worker: 1024,
            packet_store_bytes: 512 * 1024 * 1024,
        }
    }
}

/// Whom to tell what happens in rooms.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Webhooks {
    pub urls: Vec<String>,
    /// The API key that signs; empty is the first one of `[keys]`.
    pub api_key: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// Dashboard, /metrics, /healthz, /readyz. Keep it on loopback.
    pub listen: SocketAddr,
    /// Asked for by all but /healthz and /readyz. Without one the dashboard is for loopback alone.
    pub token: String,
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 7881)), token: String::new() }
    }
}

/// Who was where and when, kept for those who have to know.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// One file a day of JSON lines; empty keeps none.
    pub dir: PathBuf,
    /// Files older than that are deleted; 0 keeps them for ever.
    pub retention_days: u32,
    /// With the addresses that participants came from.
    pub addresses: bool,
    /// Attributes of participants that are kept with them.
    pub attributes: Vec<String>,
}

impl Default for Audit {
    fn default() -> Self {
        Self { dir: PathBuf::new(), retention_days: 90, addresses: true, attributes: vec!["consent".into()] }
    }
}

impl Audit {
    /// Where it is kept, if it is.
    pub fn dir(&self) -> Option<&Path> {
        Some(self.dir.as_path()).filter(|dir| !dir.as_os_str().is_empty())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    pub level: String,
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

/// A value that parses and cannot be: key, what was found, what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {found}; {remedy}")]
pub struct Impossible {
    pub key: &'static str,
    pub found: String,
    pub remedy: &'static str,
}

/// Shortest token of the admin listener: it cannot be guessed.
const ADMIN_TOKEN_MIN: usize = 16;

/// What keeps a text from being a network that means what it says.
fn why_no_network(text: &str) -> Option<String> {
    let is_meant = |net: &IpNet| net.addr().is_ipv6() || net.to_string() == text;
    let why = match text.parse::<IpNet>().ok().filter(is_meant) {
        None => String::new(),
        Some(IpNet::V6(net)) if net.addr().to_ipv4_mapped().is_some() => ": an IPv4 address is looked at as such".into(),
        Some(net) if net != net.trunc() => format!(": the one with this address is {}", net.trunc()),
        Some(_) => return None,
    };
    Some(format!("{text:?} is no network{why}"))
}

/// The settings of one section when nothing is said of them.
fn defaults(section: &str) -> toml::Table {
    let all = toml::Table::try_from(Config::default()).unwrap_or_default();
    all.get(section).and_then(toml::Value::as_table).cloned().unwrap_or_default()
}

impl Config {
    /// The keys whose values differ, such as `turn.peers`.
    pub fn changed(&self, other: &Self) -> Vec<String> {
        let table = |config: &Self| toml::Table::try_from(config).unwrap_or_default();
        let (ours, theirs) = (table(self), table(other));
        let section = |of: &toml::Table, name: &str| of.get(name).and_then(toml::Value::as_table).cloned().unwrap_or_default();
        let mut changed = Vec::new();
        for name in SECTIONS {
            let (before, after) = (section(&ours, name), section(&theirs, name));
            let keys: HashSet<&String> = before.keys().chain(after.keys()).collect();
            let differs = |key: &&&String| before.get(key.as_str()) != after.get(key.as_str());
            changed.extend(keys.iter().filter(differs).map(|key| format!("{name}.{key}")));
        }
        changed.sort();
        changed
    }

    pub fn realm(&self) -> &str {
        if self.turn.realm.is_empty() { &self.server.domain } else { &self.turn.realm }
    }

    /// Whether it can be.
    pub fn check(&self) -> Result<(), Impossible> {
        let refuse = |key, found: String, remedy| Err(Impossible { key, found, remedy });
        if self.server.domain.is_empty() || self.server.domain.contains(['/', ' ', ':']) {
            return refuse(
                "server.domain",
                format!("{:?} is no host name", self.server.domain),
                "write the public name alone, such as \"meet.example.eu\"",
            );
        }
        let is_origin = |o: &&String| {
            let host = o.strip_prefix("https://").or_else(|| o.strip_prefix("http://"));
            host.is_some_and(|h| !h.is_empty() && !h.contains('/'))
        };
        if let Some(origin) = self.server.allowed_origins.iter().find(|o| !is_origin(o)) {
            return refuse(
                "server.allowed_origins",
                format!("{origin:?}"),
                "write scheme and host without a path, such as \"https://app.example.eu\"",
            );
        }
        if self.keys.is_empty() {
            return refuse("keys", "no API key".into(), "run `postern keys` and put its line under [keys]");
        }
        if let Some((key, _)) = self.keys.iter().find(|(key, secret)| key.is_empty() || secret.is_empty()) {
            return refuse("keys", format!("key {key:?} or its secret is empty"), "run `postern keys` for a pair");
        }
        if self.network.bind_addresses.is_empty() {
            return refuse("network.bind_addresses", "an empty list".into(), "[\"0.0.0.0\", \"::\"] binds every address");
        }
        if self.network.edge_tcp_ports.is_empty() || self.network.edge_tcp_ports.contains(&0) {
            return refuse(
                "network.edge_tcp_ports",
                format!("{:?}", self.network.edge_tcp_ports),
                "name at least one port from 1 to 65535; 443 passes every firewall",
            );
        }
        if self.network.media_udp_port == 0 {
            return refuse("network.media_udp_port", "0".into(), "name a port from 1 to 65535");
        }
        if self.network.turn_ports.contains(&self.network.media_udp_port) {
            let found = format!("{} is also network.media_udp_port", self.network.media_udp_port);
            return refuse("network.turn_ports", found, "use two ports: Chromium swallows media that comes from the port of a TURN URL");
        }
        let twice = |ports: &[u16]| ports.iter().enumerate().find(|(at, port)| ports[..*at].contains(port)).map(|(_, port)| *port);
        for (key, ports) in [("network.edge_tcp_ports", &self.network.edge_tcp_ports), ("network.turn_ports", &self.network.turn_ports)] {
            if let Some(port) = twice(ports) {
                return refuse(key, format!("{port} stands there twice"), "name each port once");
            }
        }
        if let Some(port) = self.network.turn_ports.iter().find(|port| **port == 0) {
            return refuse("network.turn_ports", port.to_string(), "name ports from 1 to 65535, or none");
        }
        let is_no_address = |ip: IpAddr| ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST);
        if let Some(bad) = self.network.public_addresses.iter().find(|a| is_no_address(a.public())) {
            let remedy = "name an address that clients can send to, or leave the list empty for those of the interfaces";
            return refuse("network.public_addresses", format!("{} is nobody's address", bad.public()), remedy);
        }
        if let Some(PublicAddress::Mapped { private, public }) = self
            .network
            .public_addresses
            .iter()
            .find(|a| matches!(a, PublicAddress::Mapped { private, public } if private.is_ipv4() != public.is_ipv4()))
        {
            let found = format!("{private} and {public} are of two families");
            return refuse("network.public_addresses", found, "map IPv4 to IPv4, and IPv6 to IPv6");
        }
        let network_list = match &self.turn.peers {
            Peers::Networks(networks) => networks.as_slice(),
            Peers::Named(_) => &[],
        };
        for (key, networks) in [
            ("network.trusted_proxies", self.network.trusted_proxies.as_slice()),
            ("turn.peers", network_list),
            ("turn.denied_peers", self.turn.denied_peers.as_slice()),
        ] {
            if let Some(found) = networks.iter().find_map(|text| why_no_network(text)) {
                return refuse(key, found, "write an address and the length of its prefix, such as \"10.20.0.0/16\"");
            }
        }
        let admin = self.admin.listen;
        if !self.admin.token.bytes().all(|b| b.is_ascii_graphic()) {
            return refuse(
                "admin.token",
                "characters that no header can carry".into(),
                "use letters and digits; `postern keys` makes a secret that fits",
            );
        }
        if !self.admin.token.is_empty() && self.admin.token.len() < ADMIN_TOKEN_MIN {
            let remedy = "at least 16 characters; `postern keys` makes a secret that fits";
            return refuse("admin.token", format!("{} characters", self.admin.token.len()), remedy);
        }
        if self.audit.dir().is_some_and(|dir| !dir.is_absolute()) {
            return refuse("audit.dir", format!("{:?} is no absolute path", self.audit.dir), "such as \"/var/log/postern\"");
        }
        let is_ours = |port: &u16| *port == admin.port();
        if self.network.edge_tcp_ports.iter().chain(&self.network.turn_ports).any(is_ours) {
            return refuse(
                "admin.listen",
                format!("port {} is also one that clients use", admin.port()),
                "name another port, such as 7881",
            );
        }
        let limits = &self.limits;
        for (key, value) in [
            ("limits.joins_per_second_per_address", limits.joins_per_second_per_address as usize),
            ("limits.joins_per_second_per_identity", limits.joins_per_second_per_identity as usize),
            ("limits.message_bytes", limits.message_bytes),
            ("limits.join_request_bytes", limits.join_request_bytes),
            ("limits.tracks_per_participant", limits.tracks_per_participant),
            ("limits.connections_per_worker", limits.connections_per_worker),
            ("limits.connections_per_address", limits.connections_per_address),
            ("limits.half_open_per_address", limits.half_open_per_address),
            ("limits.permissions_per_allocation", limits.permissions_per_allocation),
            ("limits.channels_per_allocation", limits.channels_per_allocation),
            ("limits.packet_buffers_per_worker", limits.packet_buffers_per_worker),
            ("limits.packet_store_bytes", limits.packet_store_bytes),
            ("rooms.participants_max", self.rooms.participants_max as usize),
            ("rooms.streams_together", self.rooms.streams_together),
        ] {
            if value == 0 {
                return refuse(key, "0 would let nothing pass".into(), "leave it out for its default (config.example.toml has them all)");
            }
        }
        let is_acme = self.tls.mode == TlsMode::Acme;
        if is_acme && (!self.server.domain.contains('.') || self.server.domain.parse::<IpAddr>().is_ok()) {
            let found = format!("{:?} with tls.mode = \"acme\"", self.server.domain);
            return refuse("server.domain", found, "certificates are ordered for a public name: set it, or another tls.mode");
        }
        if !self.tls.acme_directory.starts_with("https://") {
            let found = format!("{:?}", self.tls.acme_directory);
            return refuse("tls.acme_directory", found, "write the whole URL of the authority's directory, beginning with https://");
        }
        if let Some(bad) = self.tls.acme_contact.iter().find(|a| !a.contains('@') || a.contains(':')) {
            return refuse("tls.acme_contact", format!("{bad:?}"), "write bare mail addresses, such as \"admin@example.eu\"");
        }
        if is_acme && self.tls.acme_challenge == Challenge::Http01 && self.network.edge_tcp_ports.len() < 2 {
            let found = format!("\"http-01\" with network.edge_tcp_ports = {:?}", self.network.edge_tcp_ports);
            return refuse("tls.acme_challenge", found, "add port 80 to network.edge_tcp_ports, behind 443, or use \"tls-alpn-01\"");
        }
        if let Peers::Named(name) = &self.turn.peers
            && !["sfu-only", "public"].contains(&name.as_str())
        {
            let remedy = "use \"sfu-only\", \"public\", or a list of networks such as [\"10.20.0.0/16\"]";
            return refuse("turn.peers", format!("{name:?}"), remedy);
        }
        if self.turn.realms.contains_key(self.realm()) {
            let found = format!("{:?} is the name of the first realm", self.realm());
            return refuse("turn.realms", found, "put its secrets and users directly under [turn]");
        }
        if let Some(bad) =
            self.turn.realms.keys().map(String::as_str).chain([self.realm()]).find(|name| name.len() > 127 || name.contains(['"', ' ']))
        {
            return refuse("turn.realms", format!("{bad:?}"), "a realm is at most 127 characters, without spaces and quotes");
        }
        if self.turn.realms.values().flat_map(|realm| realm.users.keys()).chain(self.turn.users.keys()).any(String::is_empty) {
            return refuse("turn.users", "a user without a name".into(), "give each user a name");
        }
        if self.turn.alternate_servers.iter().any(|server| server.port() == 0 || is_no_address(server.ip())) {
            let remedy = "name addresses of servers that have the same [keys], such as \"203.0.113.9:3478\"";
            return refuse("turn.alternate_servers", format!("{:?}", self.turn.alternate_servers), remedy);
        }
        if let Some(url) = self.webhooks.urls.iter().find(|u| !u.starts_with("http://") && !u.starts_with("https://")) {
            return refuse("webhooks.urls", format!("{url:?}"), "write whole URLs, such as \"https://app.example.eu/postern\"");
        }
        if !self.webhooks.api_key.is_empty() && !self.keys.contains_key(&self.webhooks.api_key) {
            let found = format!("{:?} is not under [keys]", self.webhooks.api_key);
            return refuse("webhooks.api_key", found, "name one of the API keys, or leave it empty for the first one");
        }
        let [first, last] = self.turn.relay_ports;
        if first < 1024 || last <= first {
            return refuse("turn.relay_ports", format!("[{first}, {last}]"), "give two ports, the lower one first and not below 1024");
        }
        if !["error", "warn", "info", "debug", "trace"].contains(&self.log.level.as_str()) {
            return refuse("log.level", format!("{:?}", self.log.level), "use one of error, warn, info, debug, trace");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_the_default() {
        let example = Config::parse(include_str!("../config.example.toml")).expect("config.example.toml");
        let want = Config {
            keys: example.keys.clone(),
            server: Server { domain: "meet.example.eu".into(), ..Server::default() },
            ..Config::default()
        };
        assert_eq!(format!("{example:?}"), format!("{want:?}"));
    }

    #[test]
    fn what_cannot_be_is_named() {
        let rows = [
            ("keys = { a = \"b\" }\n[turn]\npeers = \"everybody\"", "turn.peers: \"everybody\""),
            ("keys = { a = \"b\" }\n[turn]\npeers = [\"10.0.0.5-10.0.1.7\"]", "turn.peers: \"10.0.0.5-10.0.1.7\" is no network"),
            ("keys = { a = \"b\" }\n[turn]\ndenied_peers = [\"10.0.0.5/24\"]", "the one with this address is 10.0.0.0/24;"),
            ("keys = { a = \"b\" }\n[turn]\npeers = [\"::ffff:10.0.0.0/104\"]", "an IPv4 address is looked at as such;"),
            ("keys = { a = \"b\" }\n[turn]\npeers = [\"010.0.0.0/8\"]", "turn.peers: \"010.0.0.0/8\" is no network;"),
            ("keys = { a = \"b\" }\n[turn.realms.localhost]", "turn.realms: \"localhost\" is the name of the first"),
            ("keys = { a = \"b\" }\n[turn]\nalternate_servers = [\"192.0.2.1:0\"]", "turn.alternate_servers"),
            ("keys = { a = \"b\" }\n[tls]\nmode = \"acme\"", "server.domain: \"localhost\""),
            ("keys = { a = \"b\" }\n[tls]\nacme_directory = \"http://x\"", "tls.acme_directory: \"http://x\""),
            ("keys = { a = \"b\" }\n[tls]\nacme_contact = [\"mailto:a@b\"]", "tls.acme_contact: \"mailto:a@b\""),
            ("keys = { a = \"b\" }\nserver = { domain = \"a.b\" }\n[tls]\nmode = \"acme\"\nacme_challenge = \"http-01\"", "add port 80"),
            ("keys = { a = \"b\" }\n[network]\nturn_ports = [0]", "network.turn_ports: 0"),
            ("keys = { a = \"b\" }\n[network]\nturn_ports = [5, 5]", "network.turn_ports: 5 stands there twice"),
            ("keys = { a = \"b\" }\n[network]\npublic_addresses = [\"0.0.0.0\"]", "network.public_addresses: 0.0.0.0 is nobody's"),
            ("keys = { a = \"b\" }\n[network]\npublic_addresses = [{ private = \"::1\", public = \"192.0.2.1\" }]", "of two families"),
            ("keys = { a = \"b\" }\n[turn]\ndenied_peers = [\"10.0.0.0\"]", "turn.denied_peers: \"10.0.0.0\" is no network"),
            ("keys = { a = \"b\" }\n[admin]\nlisten = \"127.0.0.1:443\"", "admin.listen: port 443 is also"),
            ("keys = { a = \"b\" }\n[limits]\nmessage_bytes = 0", "limits.message_bytes: 0 would let nothing pass"),
            ("keys = { a = \"\" }", "keys: key \"a\" or its secret is empty"),
            ("keys = { a = \"b\" }\n[turn]\nrelay_ports = [9, 8]", "turn.relay_ports: [9, 8]"),
            ("keys = { a = \"b\" }\n[server]\nallowed_origins = [\"app.example.eu/\"]", "server.allowed_origins: \"app.example.eu/\""),
            ("keys = { a = \"b\" }\n[webhooks]\nurls = [\"app.example.eu\"]", "webhooks.urls: \"app.example.eu\""),
            ("keys = { a = \"b\" }\n[webhooks]\napi_key = \"c\"", "webhooks.api_key: \"c\" is not under [keys]"),
            ("keys = { a = \"b\" }\n[log]\nlevel = \"loud\"", "log.level: \"loud\""),
            ("keys = { a = \"b\" }\n[server]\ndomain = \"https://x\"", "server.domain"),
        ];
        for (text, want) in rows {
            let error = Config::parse(text).expect_err(text).to_string();
            assert!(error.contains(want), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn what_has_changed_is_named_and_nothing_else() {
        let before = Config::parse("keys = { a = \"b\" }").expect("well-formed");
        let after = Config::parse("keys = { a = \"c\", d = \"e\" }\n[log]\nlevel = \"debug\"").expect("well-formed");
        assert_eq!(before.changed(&after), ["keys.a", "keys.d", "log.level"]);
        assert!(before.changed(&before.clone()).is_empty());
    }

    #[test]
    fn addresses_behind_a_nat() {
        let text =
            "keys = { a = \"b\" }\n[network]\npublic_addresses = [\"203.0.113.7\", { private = \"10.0.0.5\", public = \"203.0.113.8\" }]";
        let config = Config::parse(text).expect("well-formed");
        let public: Vec<IpAddr> = config.network.public_addresses.iter().map(|a| a.public()).collect();
        assert_eq!(public, ["203.0.113.7".parse::<IpAddr>().expect("ip"), "203.0.113.8".parse().expect("ip")]);
    }
}
