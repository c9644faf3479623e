//! Whom an address stands for.

use std::net::{IpAddr, Ipv6Addr};

/// The one who can come from an address: whoever has one address of an IPv6 /64 has them all.
pub fn source_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}
