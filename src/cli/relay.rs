//! The relay's settings, from the config and this host's addresses.

use super::addresses::Layout;
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::sys::socket::SockaddrStorage;
use postern::config::{Config, Peers, PublicAddress};
use postern::engine::flood::Ration;
use postern::engine::peer_policy::{Opens, PeerPolicy};
use postern::engine::turn::TurnConfig;
use postern::engine::turn_auth::{Realm, Secrets};
use postern::wire::turn::{CHANNELS, OLDER_CHANNELS};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;

/// Credentials of the config; `master` is the deployment's own secret.
pub fn secrets(config: &Config, master: &[u8]) -> Secrets {
    let turn = &config.turn;
    let first = Realm::new(config.realm(), &turn.shared_secrets, &turn.users, turn.hidden_usernames);
    let secrets = Secrets::new(config.realm(), master, &[], &turn.users).with_realm(config.realm(), first);
    turn.realms.iter().fold(secrets, |secrets, (name, realm)| {
        secrets.with_realm(name, Realm::new(name, &realm.shared_secrets, &realm.users, turn.hidden_usernames))
    })
}

/// `sfu` are the media addresses that clients are told, `plain_http` a listener besides those of the layout.
pub fn turn_config(
    config: &Config,
    secrets: Secrets,
    sfu: &[SocketAddr],
    layout: &Layout,
    plain_http: Option<SocketAddr>,
    workers: u8,
) -> Result<TurnConfig, String> {
    let here = interfaces()?;
    let (turn, limits) = (&config.turn, &config.limits);
    let networks = |texts: &[String]| texts.iter().filter_map(|text| text.parse().ok()).collect::<Vec<_>>();
    let opens = match &turn.peers {
        Peers::Named(name) if name == "public" => Opens::Public,
        Peers::Named(_) => Opens::Nobody,
        Peers::Networks(texts) => Opens::Networks(networks(texts)),
    };
    let [first_port, last_port] = turn.relay_ports;
    let listeners = layout.udp.iter().map(|(at, _)| at.port()).chain(layout.tcp.iter().map(|(at, _)| at.port()));
    let peers = PeerPolicy {
        sfu: sfu.to_vec(),
        own: own_addresses(config, &here),
        broadcasts: broadcasts(&here),
        listeners: listeners.chain([config.admin.listen.port()]).chain(plain_http.map(|at| at.port())).collect(),
        relay_ports: Some(first_port..=last_port),
        ..PeerPolicy::new(opens, networks(&turn.denied_peers))
    };
    Ok(TurnConfig {
        secrets,
        peers,
        relay_ports: first_port..=last_port,
        ephemeral_ports: ephemeral_ports(),
        allocations_per_user_max: turn.allocations_per_user,
        allocations_per_address_max: limits.allocations_per_address,
        allocations_max: limits.allocations_per_worker,
        permissions_max: limits.permissions_per_allocation,
        channels_max: limits.channels_per_allocation,
        channel_numbers: if turn.older_channel_numbers { OLDER_CHANNELS } else { CHANNELS },
        lifetime_s: 600..=3600,
        bytes_per_allocation: limits.relay_bytes_per_second_per_allocation,
        // Each worker has its part; of a limit that is one, at least a byte.
        bytes_in_all: limits.relay_bytes_per_second.div_ceil(u64::from(workers.max(1))),
        ration: Ration {
            per_network: limits.stun_answers_per_second_per_network,
            in_all: limits.stun_answers_per_second.div_ceil(u64::from(workers.max(1))),
        },
        strict_expiry: turn.strict_expiry,
        binding_over_tcp: turn.binding_over_tcp,
        alternates: turn.alternate_servers.clone(),
        workers,
    })
}

fn ephemeral_ports() -> Option<RangeInclusive<u16>> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let (first, last) = text.trim().split_once(char::is_whitespace)?;
    Some(first.parse().ok()?..=last.trim().parse().ok()?)
}

/// This host's interfaces. Without them nobody knows what to keep closed.
fn interfaces() -> Result<Vec<InterfaceAddress>, String> {
    getifaddrs().map(Iterator::collect).map_err(|e| format!("this host's addresses cannot be read: {e}"))
}

/// Every address that leads to this host: its interfaces', and those that a NAT maps to it.
fn own_addresses(config: &Config, here: &[InterfaceAddress]) -> Vec<IpAddr> {
    let mapped = config.network.public_addresses.iter().flat_map(|address| match address {
        PublicAddress::Own(ip) => vec![*ip],
        PublicAddress::Mapped { private, public } => vec![*private, *public],
    });
    let interfaces = here.iter().filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    });
    let mut own: Vec<IpAddr> = mapped.chain(interfaces).chain(config.network.bind_addresses.iter().copied()).collect();
    own.retain(|ip| !ip.is_unspecified());
    own.sort_unstable();
    own.dedup();
    own
}

/// Where each network of this host's hears everybody: as it was set, by its last address, and by its first (Linux before 5.14).
fn broadcasts(here: &[InterfaceAddress]) -> Vec<IpAddr> {
    let v4 = |address: Option<SockaddrStorage>| Some(address?.as_sockaddr_in()?.ip());
    let of = |interface: &InterfaceAddress| {
        let network = v4(interface.address).zip(v4(interface.netmask)).filter(|(_, mask)| mask.to_bits().count_zeros() > 1);
        let ends =
            network.map(|(ip, mask)| (ip.to_bits(), mask.to_bits())).map(|(ip, mask)| [ip & mask, ip | !mask].map(Ipv4Addr::from_bits));
        v4(interface.broadcast).into_iter().chain(ends.into_iter().flatten()).map(IpAddr::V4)
    };
    here.iter().flat_map(of).collect()
}

/// Where sockets of relays are bound, for relayed addresses that are not this host's own: behind a NAT.
pub fn bound_to(config: &Config, advertised: &[IpAddr]) -> Vec<(IpAddr, IpAddr)> {
    let any = |ip: &IpAddr| if ip.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    let private_of = |ip: &IpAddr| {
        config.network.public_addresses.iter().find_map(|address| match address {
            PublicAddress::Mapped { private, public } if public == ip => Some(*private),
            _ => None,
        })
    };
    let is_here = |ip: &IpAddr| std::net::UdpSocket::bind((*ip, 0)).is_ok();
    advertised.iter().filter_map(|ip| private_of(ip).or_else(|| (!is_here(ip)).then(|| any(ip))).map(|bound| (*ip, bound))).collect()
}
