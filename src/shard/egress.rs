//! What leaves a shard in one turn: dressed datagrams in one arena, in order; frames for connections in their queues.

use crate::base::id::{AllocationId, Carrier, ClientAddr, PeerAddr, SocketId};
use crate::session::path::{HEADER_MAX, Route};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

/// Through which socket a datagram leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlet {
    /// One of the server's, from the address that the client wrote to.
    Shared { socket: SocketId, local: IpAddr },
    /// A relay's own.
    Relay { allocation: AllocationId, dont_fragment: bool },
}

/// One datagram for a UDP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub outlet: Outlet,
    pub remote: SocketAddr,
    start: usize,
    end: usize,
}

impl Datagram {
    /// Whose it is, if it is a client's.
    pub fn carrier(&self) -> Option<Carrier> {
        match self.outlet {
            Outlet::Shared { socket, local } => Some(Carrier::Udp { socket, local, remote: ClientAddr(self.remote) }),
            Outlet::Relay { .. } => None,
        }
    }

    pub fn range(&self) -> Range<usize> {
        self.start..self.end
    }
}

/// Neighbours in the arena for one client, all of one length but the last, which may be shorter: one message for a kernel
/// that cuts it apart (UDP_SEGMENT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run<'a> {
    pub outlet: Outlet,
    pub remote: SocketAddr,
    pub bytes: &'a [u8],
    /// Length of each datagram but the last.
    pub segment: usize,
    pub datagrams: usize,
}

/// Datagrams of one run, and its bytes: what the kernel takes.
const RUN_DATAGRAMS_MAX: usize = 64;
const RUN_BYTES_MAX: usize = 65_000;

/// Bytes that are written before they should leave, about what one system call takes of single packets: they are still in the
/// cache when the kernel copies them, and the first does not wait for many behind it.
const FILL: usize = 64 * 1024;
/// What a message may have around its payload.
const AROUND_MAX: usize = HEADER_MAX + 4;

/// Reused from turn to turn; grows to the largest turn and stays.
#[derive(Default)]
pub struct Egress {
    /// Never shrinks: what lies behind `used` is left from before.
    arena: Vec<u8>,
    used: usize,
    datagrams: Vec<Datagram>,
    open: Option<Slot>,
}

/// A message that is being written, at `start` of the arena.
struct Slot {
    route: Route,
    start: usize,
    payload_at: usize,
}

impl Egress {
    /// A place for a payload of at most `len` bytes behind its header; what stands in it is of no meaning. Follow with
    /// [`Egress::commit`] or start another.
    pub fn slot(&mut self, route: Route, len: usize) -> &mut [u8] {
        let start = self.abandon();
        let end = start + AROUND_MAX + len;
        if self.arena.len() < end {
            self.arena.resize(end.next_power_of_two(), 0);
        }
        let payload_at = start + route.open(&mut self.arena[start..]);
        self.open = Some(Slot { route, start, payload_at });
        &mut self.arena[payload_at..payload_at + len]
    }

    /// The slot holds a payload of `len` bytes. For a connection: the finished frame, to be queued by the caller.
    pub fn commit(&mut self, len: usize) -> Option<&[u8]> {
        let Slot { route, start, payload_at } = self.open.take()?;
        let end = start + route.finish(&mut self.arena[start..], payload_at - start, len);
        match route.carrier {
            Carrier::Udp { socket, local, remote } => {
                self.used = end;
                self.datagrams.push(Datagram { outlet: Outlet::Shared { socket, local }, remote: remote.0, start, end });
                None
            }
            // The frame is not kept: the next slot takes its place.
            Carrier::Stream(_) => Some(&self.arena[start..end]),
        }
    }

    /// A datagram for a peer, through its relay's own socket.
    pub fn outward(&mut self, allocation: AllocationId, peer: PeerAddr, dont_fragment: bool, payload: &[u8]) {
        let start = self.abandon();
        let end = start + payload.len();
        if self.arena.len() < end {
            self.arena.resize(end.next_power_of_two(), 0);
        }
        self.arena[start..end].copy_from_slice(payload);
        self.used = end;
        self.datagrams.push(Datagram { outlet: Outlet::Relay { allocation, dont_fragment }, remote: peer.0, start, end });
    }

    /// Drops what was not committed; where the arena ends.
    pub fn abandon(&mut self) -> usize {
        self.open = None;
        self.used
    }

    /// Enough is written for once: it should leave before more is.
    pub fn is_full(&self) -> bool {
        self.used >= FILL
    }

    pub fn datagrams(&self) -> &[Datagram] {
        &self.datagrams
    }

    pub fn bytes(&self, datagram: &Datagram) -> &[u8] {
        &self.arena[datagram.range()]
    }

    /// All datagrams in order, neighbours that fit together as one.
    pub fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        let mut rest = &self.datagrams[..];
        std::iter::from_fn(move || {
            let first = rest.first()?;
            let segment = first.end - first.start;
            let (mut count, mut end) = (1, first.end);
            for (before, next) in rest.iter().zip(&rest[1..]) {
                let is_same_way = (next.outlet, next.remote) == (first.outlet, first.remote);
                let fits = next.start == before.end && next.end - next.start <= segment && before.end - before.start == segment;
                let is_room = count < RUN_DATAGRAMS_MAX && next.end - first.start <= RUN_BYTES_MAX;
                if !is_same_way || !fits || !is_room || segment == 0 {
                    break;
                }
                (count, end) = (count + 1, next.end);
            }
            rest = &rest[count..];
            let bytes = &self.arena[first.start..end];
            Some(Run { outlet: first.outlet, remote: first.remote, bytes, segment, datagrams: count })
        })
    }

    /// Takes datagrams off the list: they have been sent.
    pub fn forget(&mut self, is_sent: impl Fn(&Datagram) -> bool) {
        self.datagrams.retain(|d| !is_sent(d));
        if self.datagrams.is_empty() {
            self.clear();
        }
    }

    /// The turn is over: everything was handed to the kernel.
    pub fn clear(&mut self) {
        self.open = None;
        self.used = 0;
        self.datagrams.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::StreamId;
    use crate::session::path::Dress;

    #[test]
    fn neighbours_of_one_length_leave_together() {
        let client = |port| ClientAddr(([192, 0, 2, 1], port).into());
        let to = |port| Carrier::Udp { socket: SocketId(0), local: [192, 0, 2, 9].into(), remote: client(port) };
        let mut egress = Egress::default();
        let rows: &[(u16, usize)] = &[(5, 100), (5, 100), (5, 60), (5, 100), (6, 100), (6, 100), (6, 101), (5, 101)];
        for (port, len) in rows {
            egress.slot(Route { carrier: to(*port), dress: Dress::Bare }, 200).fill(*port as u8);
            egress.commit(*len);
        }
        let runs: Vec<_> = egress.runs().map(|r| (r.remote, r.segment, r.datagrams, r.bytes.len())).collect();
        let want = [(5, 100, 3, 260), (5, 100, 1, 100), (6, 100, 2, 200), (6, 101, 1, 101), (5, 101, 1, 101)];
        assert_eq!(runs, want.map(|(port, segment, n, len)| (client(port).0, segment, n, len)));
        for _ in 0..100 {
            egress.slot(Route { carrier: to(7), dress: Dress::Bare }, 1200);
            egress.commit(1200);
        }
        let long: Vec<usize> = egress.runs().filter(|r| r.remote == client(7).0).map(|r| r.datagrams).collect();
        assert_eq!(long, [54, 46], "no longer than the kernel takes");
    }

    #[test]
    fn slots_are_committed_abandoned_and_framed() {
        let remote = ClientAddr(([192, 0, 2, 1], 5).into());
        let udp = Carrier::Udp { socket: SocketId(0), local: [192, 0, 2, 9].into(), remote };
        let mut egress = Egress::default();
        egress.slot(Route { carrier: udp, dress: Dress::Bare }, 9).fill(1);
        egress.commit(3);
        egress.slot(Route { carrier: udp, dress: Dress::Bare }, 9).fill(2);
        egress.slot(Route { carrier: Carrier::Stream(StreamId(1)), dress: Dress::Rfc4571 }, 9).fill(3);
        assert_eq!(egress.commit(2), Some(&[0, 2, 3, 3][..]));
        egress.slot(Route { carrier: udp, dress: Dress::Channel(0x4000) }, 4).fill(4);
        egress.commit(1);
        let sent: Vec<_> = egress.datagrams().iter().map(|d| egress.bytes(d).to_vec()).collect();
        assert_eq!(sent, [vec![1, 1, 1], vec![0x40, 0, 0, 1, 4]]);
    }
}
