//! Names of things. Two kinds of address are never the same type, and neither are two kinds of number.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::{IpAddr, SocketAddr};

/// By names that we gave out ourselves, and that nobody can choose so that they collide: hashed by one multiplication.
pub type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;

#[derive(Default)]
pub struct IdHasher(u64);

impl IdHasher {
    fn add(&mut self, n: u64) {
        // The golden ratio (Knuth, volume 3, section 6.4).
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        // Tables look at the lowest bits, which a multiplication mixes least.
        self.0.rotate_left(26)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.add(u64::from(*byte)));
    }

    fn write_u8(&mut self, n: u8) {
        self.add(u64::from(n));
    }

    fn write_u16(&mut self, n: u16) {
        self.add(u64::from(n));
    }

    fn write_u32(&mut self, n: u32) {
        self.add(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        self.add(n);
    }

    fn write_isize(&mut self, n: isize) {
        self.add(n as u64);
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// Index of a worker thread, 0 for the first core.
    WorkerId(u8)
);
number!(
    /// One participant's transport. Unique in the process, never used again.
    SessionId(u64)
);
number!(
    /// A room of the control plane.
    RoomId(u64)
);
number!(
    /// A published track. Unique in the process, never used again.
    TrackId(u64)
);
number!(
    /// One accepted TCP connection that carries media. The upper byte is the accepting worker, so it stays unique when it moves.
    StreamId(u64)
);
number!(
    /// A TURN allocation (RFC 8656 §3). The upper byte is the worker it was made on, so it stays unique when it moves.
    AllocationId(u64)
);
number!(
    /// RTP synchronisation source (RFC 3550 §3).
    Ssrc(u32)
);
number!(
    /// Which bound UDP address: the same index means the same address and port on every worker.
    SocketId(u8)
);

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub SocketAddr);

        impl $name {
            pub fn ip(self) -> IpAddr {
                self.0.ip()
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

address!(
    /// Where a client's bytes come from, as the kernel saw it.
    ClientAddr
);
address!(
    /// The far end of a relay: what a TURN client names in XOR-PEER-ADDRESS.
    PeerAddr
);
address!(
    /// The address a TURN server lends to its client (XOR-RELAYED-ADDRESS).
    RelayedAddr
);

/// What carries a client's bytes to us: a UDP 4-tuple or a connection. With TURN, its "5-tuple" (RFC 8656 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carrier {
    Udp { socket: SocketId, local: IpAddr, remote: ClientAddr },
    Stream(StreamId),
}

/// One way by which bytes reach a participant. Equal keys are the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PathId {
    /// A UDP 4-tuple: our socket and the address that the packet was sent to, and the client.
    Udp { socket: SocketId, local: IpAddr, remote: ClientAddr },
    /// An ICE-TCP connection (RFC 6544), frames of RFC 4571.
    Tcp(StreamId),
    /// A TURN allocation of our own relay; the peer is one of our media addresses.
    Relayed { allocation: AllocationId, peer: PeerAddr },
}
