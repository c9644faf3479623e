//! Whom the relay may talk to (RFC 8656 §21): closed unless the administrator opens it, and never a way to the server itself.
//!
//! An address counts for what it leads to: one that carries an IPv4 address inside (compatible, NAT64, ISATAP) must be allowed
//! as a whole and by the address in it; mapped ones, 6to4 and Teredo never are. The server's own addresses are looked at before
//! any rule.
//!
//! ```text
//! own address? ──yes──> its media port: the SFU. A relayed port: another allocation. A listener: nobody.
//!     │                 else as below, and only if an explicit network names it
//!     no ──> turn.denied_peers ──> turn.peers (networks, or "public" without what is no public address)
//! ```

use ipnet::{IpNet, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;

/// Addresses that are nobody's on the public internet (IANA's special-purpose registries, RFC 6890), and what clouds answer
/// their guests under. "public" does not mean these; an explicit network does.
const NOT_PUBLIC: [&str; 40] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "168.63.129.16/32",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.31.196.0/24",
    "192.52.193.0/24",
    "192.88.99.0/24",
    "192.168.0.0/16",
    "192.175.48.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/96",
    "::ffff:0.0.0.0/96",
    "::ffff:0:0:0/96",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "100::/64",
    "100:0:0:1::/64",
    "2001::/32",
    "2001:2::/48",
    "2001:10::/28",
    "2001:20::/28",
    "2001:db8::/32",
    "2002::/16",
    "2620:4f:8000::/48",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
    "2001::/23",
];

/// What no rule opens: "this network", which some systems take for themselves (RFC 1122 §3.2.1.3), and tunnels that carry a
/// packet to whom they like (RFC 8656 §21.4). So are multicast and broadcast.
const NEVER: [&str; 4] = ["0.0.0.0/8", "127.255.255.255/32", "2001::/32", "2002::/16"];

/// To whom the administrator opens the relay, besides its SFU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Opens {
    #[default]
    Nobody,
    Public,
    Networks(Vec<IpNet>),
}

/// What an address is to the relay. What is not here is forbidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// One of our own: what it stands for depends on its port.
    Own,
    Foreign,
}

/// Where a packet for an address and port goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Sfu,
    /// Another allocation's relayed address, if there is such an allocation; else as `Foreign` if that is allowed.
    Relayed {
        or_foreign: bool,
    },
    Foreign,
}

/// Rules and our own addresses. One value for all workers.
#[derive(Clone, Debug, Default)]
pub struct PeerPolicy {
    /// The SFU's media addresses as clients know them. Exact port included.
    pub sfu: Vec<SocketAddr>,
    /// Addresses of this host and those that a NAT maps to it.
    pub own: Vec<IpAddr>,
    /// Where this host's networks hear everybody.
    pub broadcasts: Vec<IpAddr>,
    /// Ports that this server listens on, of every kind.
    pub listeners: Vec<u16>,
    pub relay_ports: Option<RangeInclusive<u16>>,
    pub opens: Opens,
    pub denied: Vec<IpNet>,
    /// What "public" leaves out.
    pub not_public: Vec<IpNet>,
    /// What everything leaves out.
    pub never: Vec<IpNet>,
}

impl PeerPolicy {
    pub fn new(opens: Opens, denied: Vec<IpNet>) -> Self {
        let nets = |texts: &[&str]| texts.iter().map(|net| net.parse().expect("a literal")).collect();
        Self { opens, denied, not_public: nets(&NOT_PUBLIC), never: nets(&NEVER), ..Self::default() }
    }

    /// Whether anybody but the SFU may be a peer.
    pub fn is_open(&self) -> bool {
        self.opens != Opens::Nobody
    }

    /// Our address of a family: relayed addresses are of it.
    pub fn relay_ip(&self, is_v4: bool) -> Option<IpAddr> {
        self.sfu.iter().map(SocketAddr::ip).find(|ip| ip.is_ipv4() == is_v4)
    }

    /// What this address is; `None` when no permission may be given for it.
    pub fn peer(&self, ip: IpAddr) -> Option<Peer> {
        // Nothing is sent to an IPv4 address under the other family's name.
        if matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
            return None;
        }
        if self.sfu.iter().any(|own| own.ip() == ip) {
            return Some(Peer::Own);
        }
        let hidden = inner(ip);
        if hidden.iter().any(|v4| self.is_own(IpAddr::V4(*v4)) || !self.is_allowed(IpAddr::V4(*v4))) || !self.is_allowed(ip) {
            return None;
        }
        match (self.is_own(ip), &self.opens) {
            (false, _) => Some(Peer::Foreign),
            (true, Opens::Networks(_)) => Some(Peer::Own),
            (true, Opens::Nobody | Opens::Public) => None,
        }
    }

    /// Where packets for one of our own addresses go; `None` when nowhere.
    pub fn own_target(&self, peer: SocketAddr) -> Option<Target> {
        if self.sfu.contains(&peer) {
            return Some(Target::Sfu);
        }
        let is_listener = self.listeners.contains(&peer.port()) || peer.port() == 0;
        if is_listener || !self.is_open() {
            return None;
        }
        let is_named = matches!(self.opens, Opens::Networks(_)) && self.is_allowed(peer.ip());
        let is_relayed = self.relay_ports.as_ref().is_some_and(|ports| ports.contains(&peer.port()));
        match (is_relayed && self.relay_ip(peer.is_ipv4()) == Some(peer.ip()), is_named) {
            (true, or_foreign) => Some(Target::Relayed { or_foreign }),
            (false, true) => Some(Target::Foreign),
            (false, false) => None,
        }
    }

    /// Whether packets for a permitted address may have to leave through a socket.
    pub fn needs_socket(&self, ip: IpAddr, peer: Peer) -> bool {
        peer == Peer::Foreign || (matches!(self.opens, Opens::Networks(_)) && self.is_allowed(ip))
    }

    fn is_own(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || ip.is_unspecified() || self.own.contains(&ip) || self.sfu.iter().any(|own| own.ip() == ip)
    }

    fn is_allowed(&self, ip: IpAddr) -> bool {
        let is_in = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&ip));
        let is_many = ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) || self.broadcasts.contains(&ip);
        if is_many || ip.is_unspecified() || is_in(&self.never) || is_in(&self.denied) {
            return false;
        }
        match &self.opens {
            Opens::Nobody => false,
            Opens::Public => !is_in(&self.not_public),
            Opens::Networks(networks) => is_in(networks),
        }
    }
}

/// IPv4 addresses that an IPv6 address leads to.
fn inner(ip: IpAddr) -> Vec<Ipv4Addr> {
    let IpAddr::V6(v6) = ip else { return Vec::new() };
    let s = v6.segments();
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    let is_in = |net: &str| net.parse::<Ipv6Net>().is_ok_and(|net| net.contains(&v6));
    let mut inner = Vec::new();
    // IPv4-compatible (RFC 4291 §2.5.5.1), IPv4-translated (RFC 2765), NAT64 (RFC 6052, RFC 8215).
    if is_in("::ffff:0:0:0/96")
        || (is_in("::/96") && !v6.is_loopback() && !v6.is_unspecified())
        || is_in("64:ff9b::/96")
        || is_in("64:ff9b:1::/48")
    {
        inner.push(v4(s[6], s[7]));
    }
    // ISATAP (RFC 5214 §6.1), the global and the local form of it.
    if s[4] & !0x0200 == 0 && s[5] == 0x5efe {
        inner.push(v4(s[6], s[7]));
    }
    inner
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(opens: &str, denied: &[&str]) -> PeerPolicy {
        let nets = |texts: &str| texts.split(' ').map(|text| text.parse().expect("a network")).collect();
        let opens = match opens {
            "sfu-only" => Opens::Nobody,
            "public" => Opens::Public,
            list => Opens::Networks(nets(list)),
        };
        let denied = if denied.is_empty() { Vec::new() } else { nets(&denied.join(" ")) };
        PeerPolicy {
            sfu: vec!["203.0.114.7:443".parse().expect("an address"), "[2a00::7]:443".parse().expect("an address")],
            own: ["203.0.114.7", "2a00::7", "10.9.9.9", "203.0.114.8"].map(|ip| ip.parse().expect("an address")).to_vec(),
            broadcasts: vec![Ipv4Addr::new(10, 9, 9, 255).into()],
            listeners: vec![443, 3478, 7881],
            relay_ports: Some(49152..=65535),
            ..PeerPolicy::new(opens, denied)
        }
    }

    fn of(policy: &PeerPolicy, ip: &str) -> Option<Peer> {
        policy.peer(ip.parse().expect("an address"))
    }

    /// Every form of an IPv4 address inside an IPv6 one.
    fn forms(v4: &str) -> Vec<String> {
        let o = v4.parse::<Ipv4Addr>().expect("an address").octets();
        let (high, low) = (u16::from_be_bytes([o[0], o[1]]), u16::from_be_bytes([o[2], o[3]]));
        vec![
            format!("::ffff:{v4}"),
            format!("::{v4}"),
            format!("::ffff:0:{v4}"),
            format!("64:ff9b::{v4}"),
            format!("64:ff9b:1::{v4}"),
            format!("2002:{high:x}:{low:x}::1"),
            format!("2001:0:{high:x}:{low:x}::1"),
            format!("2001:0:808:808::{:x}:{:x}", !high, !low),
            format!("2a00::5efe:{high:x}:{low:x}"),
            format!("2a00::200:5efe:{high:x}:{low:x}"),
        ]
    }

    /// S1 to S5: what no relay may reach.
    const FORBIDDEN: [&str; 36] = [
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "127.9.9.9",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.1.1",
        "198.18.0.1",
        "198.19.255.255",
        "198.51.100.1",
        "203.0.113.9",
        "224.0.0.1",
        "239.255.255.255",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fd00:ec2::254",
        "fc00::1",
        "fe80::1",
        "fe80::5efe:10.0.0.1",
        "fec0::1",
        "ff02::1",
        "100::1",
        "2001:db8::1",
        "2001:10::1",
        "3fff::1",
        "5f00::1",
    ];

    #[test]
    fn s1_to_s4_sfu_only_and_public_reach_no_special_address() {
        for opens in ["sfu-only", "public"] {
            let policy = policy(opens, &[]);
            for ip in FORBIDDEN {
                assert_eq!(of(&policy, ip), None, "{opens}: {ip}");
                if ip.parse::<Ipv4Addr>().is_ok() {
                    forms(ip).iter().for_each(|form| assert_eq!(of(&policy, form), None, "{opens}: {form}"));
                }
            }
            let want = (opens == "public").then_some(Peer::Foreign);
            for ip in ["8.8.8.8", "172.15.255.255", "172.32.0.0", "223.255.255.255", "2a00:1450::1", "2606:4700::1"] {
                assert_eq!(of(&policy, ip), want, "{opens}: {ip}");
            }
        }
    }

    #[test]
    fn s5_and_s6_our_own_addresses_lead_to_the_sfu_and_to_allocations_and_to_no_listener() {
        let at = |peer: &str| peer.parse::<SocketAddr>().expect("an address");
        for (opens, relayed) in [("sfu-only", None), ("public", Some(Target::Relayed { or_foreign: false }))] {
            let policy = policy(opens, &["203.0.114.7/32"]);
            assert_eq!(of(&policy, "203.0.114.7"), Some(Peer::Own), "before any rule");
            assert_eq!(policy.own_target(at("203.0.114.7:443")), Some(Target::Sfu));
            assert_eq!(policy.own_target(at("[2a00::7]:443")), Some(Target::Sfu));
            assert_eq!(policy.own_target(at("203.0.114.7:50000")), relayed, "{opens}");
            for port in [0, 22, 442, 444, 3478, 7881, 49151] {
                assert_eq!(policy.own_target(SocketAddr::new(at("203.0.114.7:1").ip(), port)), None, "{opens}: {port}");
            }
            for own in ["10.9.9.9", "203.0.114.8", "127.0.0.1", "::1"] {
                assert_eq!(of(&policy, own), None, "{opens}: {own}");
            }
        }
        // An explicit network opens our own host, but for what we listen on.
        let policy = policy("10.0.0.0/8 127.0.0.0/8", &[]);
        assert_eq!(of(&policy, "10.9.9.9"), Some(Peer::Own));
        assert_eq!(of(&policy, "203.0.114.8"), None);
        assert_eq!(policy.own_target(at("127.0.0.1:8080")), Some(Target::Foreign));
        assert_eq!(policy.own_target(at("10.9.9.9:50000")), Some(Target::Foreign), "no relayed address is there");
        for port in [443, 3478, 7881] {
            assert_eq!(policy.own_target(SocketAddr::new(at("127.0.0.1:1").ip(), port)), None, "{port}");
        }
    }

    #[test]
    fn s8_networks_open_and_denied_ones_close_at_their_exact_bounds() {
        let policy = policy("10.20.0.0/16 2001:db8:1::/48 10.30.0.5/32 64:ff9b::/96", &["10.20.7.0/24", "2001:db8:1:2::/64"]);
        let rows = [
            ("10.20.0.0", true),
            ("10.20.255.255", true),
            ("10.19.255.255", false),
            ("10.21.0.0", false),
            ("10.20.7.0", false),
            ("10.20.7.255", false),
            ("10.20.8.0", true),
            ("10.30.0.5", true),
            ("10.30.0.6", false),
            ("8.8.8.8", false),
            ("2001:db8:1::", true),
            ("2001:db8:1:2::ffff", false),
            ("2001:db8:1:3::", true),
            ("2001:db8:2::", false),
            ("64:ff9b::10.20.0.1", true),
            ("64:ff9b::10.20.7.1", false),
            ("64:ff9b::127.0.0.1", false),
            ("64:ff9b::8.8.8.8", false),
            ("::ffff:10.20.0.1", false),
        ];
        for (ip, want) in rows {
            assert_eq!(of(&policy, ip).is_some(), want, "{ip}");
        }
    }

    #[test]
    fn s2_and_s3_what_is_nobodys_address_is_opened_by_no_network() {
        let policy = policy("0.0.0.0/0 ::/0", &[]);
        for ip in ["0.0.0.0", "0.1.2.3", "127.255.255.255", "224.0.0.1", "255.255.255.255", "10.9.9.255", "::", "ff02::1"] {
            assert_eq!(of(&policy, ip), None, "{ip}");
        }
        for ip in ["2002:808:808::1", "2001:0:808:808::f7f7:f7f7", "::ffff:8.8.8.8"] {
            assert_eq!(of(&policy, ip), None, "{ip}");
        }
        for ip in ["10.9.8.255", "127.0.0.1", "169.254.169.254", "::1", "2001:db8::1"] {
            assert!(of(&policy, ip).is_some(), "{ip}: named by whoever opens everything");
        }
    }
}
