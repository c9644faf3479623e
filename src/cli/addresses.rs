//! Which addresses and ports a server listens on, and which ones clients are told.

use postern::config::{Config, PublicAddress};
use postern::io::ListenerRole;
use postern::session::negotiate::Candidates;
use postern::shard::PortRole;
use std::net::{IpAddr, SocketAddr};

/// Which UDP sockets and TCP listeners every worker has, in the order of `SocketId`.
pub struct Layout {
    pub udp: Vec<(SocketAddr, PortRole)>,
    pub tcp: Vec<(SocketAddr, ListenerRole)>,
}

impl Layout {
    pub fn of(config: &Config) -> Self {
        let network = &config.network;
        let (mut udp, mut tcp) = (Vec::new(), Vec::new());
        for ip in network.bind_addresses.iter().filter(|ip| is_available(**ip)) {
            udp.push((SocketAddr::new(*ip, network.media_udp_port), PortRole::Media));
            udp.extend(network.turn_ports.iter().map(|port| (SocketAddr::new(*ip, *port), PortRole::Turn)));
            tcp.extend(network.edge_tcp_ports.iter().map(|port| (SocketAddr::new(*ip, *port), ListenerRole::Edge)));
            let turn_only = network.turn_ports.iter().filter(|port| !network.edge_tcp_ports.contains(port));
            tcp.extend(turn_only.map(|port| (SocketAddr::new(*ip, *port), ListenerRole::Turn)));
        }
        Self { udp, tcp }
    }

    pub fn udp_addresses(&self) -> Vec<SocketAddr> {
        self.udp.iter().map(|(address, _)| *address).collect()
    }
}

/// A host without IPv6 has no `::` to bind; every other address must be there.
fn is_available(ip: IpAddr) -> bool {
    let is_wildcard_v6 = ip.is_ipv6() && ip.is_unspecified();
    !is_wildcard_v6 || std::net::UdpSocket::bind((ip, 0)).is_ok()
}

/// Addresses that clients are told: configured ones, else those of the bound interfaces.
pub fn advertised(config: &Config) -> Result<Vec<IpAddr>, String> {
    let configured: Vec<IpAddr> = config.network.public_addresses.iter().map(|a: &PublicAddress| a.public()).collect();
    let addresses = if configured.is_empty() { interface_addresses(&config.network.bind_addresses)? } else { configured };
    if addresses.iter().all(is_private) && !config.network.bind_addresses.iter().all(IpAddr::is_loopback) {
        tracing::warn!(
            ?addresses,
            "only private addresses are advertised: clients elsewhere will not reach media; set network.public_addresses"
        );
    }
    let media = config.network.media_udp_port;
    if media < 1024 && addresses.iter().any(is_private) {
        tracing::warn!(
            media_udp_port = media,
            "Chromium refuses media candidates below port 1024 on private addresses: set network.media_udp_port to one from 1024 on, such as 7443"
        );
    }
    Ok(addresses)
}

fn interface_addresses(bind: &[IpAddr]) -> Result<Vec<IpAddr>, String> {
    let fixed: Vec<IpAddr> = bind.iter().copied().filter(|ip| !ip.is_unspecified()).collect();
    let (v4, v6) = (bind.iter().any(|ip| ip.is_unspecified() && ip.is_ipv4()), bind.iter().any(|ip| ip.is_unspecified() && ip.is_ipv6()));
    let interfaces = nix::ifaddrs::getifaddrs().map_err(|e| format!("network interfaces: {e}"))?;
    let mut found: Vec<IpAddr> = interfaces
        .filter_map(|i| {
            let address = i.address?;
            let v4_address = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4_address.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .filter(|ip| match ip {
            IpAddr::V4(ip) => v4 && !ip.is_loopback() && !ip.is_link_local(),
            IpAddr::V6(ip) => v6 && !ip.is_loopback() && ip.segments()[0] & 0xFFC0 != 0xFE80,
        })
        .collect();
    found.extend(fixed);
    if found.is_empty() {
        // A machine without a network still serves itself.
        found.extend(
            bind.iter().map(|ip| if ip.is_ipv4() { IpAddr::from([127, 0, 0, 1]) } else { IpAddr::from(std::net::Ipv6Addr::LOCALHOST) }),
        );
    }
    found.sort_by_key(|ip| (ip.is_ipv6(), is_private(ip)));
    found.dedup();
    Ok(found)
}

fn is_private(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_loopback() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.segments()[0] & 0xFE00 == 0xFC00,
    }
}

pub fn candidates(config: &Config, addresses: &[IpAddr]) -> Candidates {
    let at = |port: u16| addresses.iter().map(move |ip| SocketAddr::new(*ip, port));
    Candidates {
        udp: at(config.network.media_udp_port).collect(),
        tcp: config.network.edge_tcp_ports.iter().flat_map(|port| at(*port)).collect(),
    }
}

/// Names that a certificate of our own making is good for: the server's own first.
pub fn names(config: &Config, addresses: &[IpAddr]) -> Vec<String> {
    let others =
        ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()].into_iter().chain(addresses.iter().map(IpAddr::to_string));
    let mut names = vec![config.server.domain.clone()];
    for name in others {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
