//! What leaves a shard in one turn: dressed datagrams in one arena, in order; frames for connections in their queues.

use crate::base::id::{Carrier, ClientAddr, SocketId};
use crate::session::path::Route;
use std::net::IpAddr;
use std::ops::Range;

/// One datagram for a UDP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram {
    pub socket: SocketId,
    /// The address it must come from: the one the client wrote to.
    pub local: IpAddr,
    pub remote: ClientAddr,
    start: usize,
    end: usize,
}

impl Datagram {
    pub fn range(&self) -> Range<usize> {
        self.start..self.end
    }
}

/// Reused from turn to turn; grows to the largest turn and stays.
#[derive(Default)]
pub struct Egress {
    arena: Vec<u8>,
    datagrams: Vec<Datagram>,
    open: Option<(Route, usize, usize)>,
}

impl Egress {
    /// A place for a payload of at most `len` bytes behind its header. Follow with [`Egress::commit`] or start another.
    pub fn slot(&mut self, route: Route, len: usize) -> &mut [u8] {
        let start = self.abandon();
        let payload_at = route.open(&mut self.arena);
        self.arena.resize(payload_at + len, 0);
        self.open = Some((route, start, payload_at));
        &mut self.arena[payload_at..]
    }

    /// The slot holds a payload of `len` bytes. For a connection: the finished frame, to be queued by the caller.
    pub fn commit(&mut self, len: usize) -> Option<&[u8]> {
        let (route, start, payload_at) = self.open.take()?;
        self.arena.truncate(payload_at + len);
        route.finish(&mut self.arena, start, payload_at);
        match route.carrier {
            Carrier::Udp { socket, local, remote } => {
                self.datagrams.push(Datagram { socket, local, remote, start, end: self.arena.len() });
                None
            }
            Carrier::Stream(_) => {
                // The frame stays until the next slot takes its place.
                self.open = Some((route, start, payload_at));
                Some(&self.arena[start..])
            }
        }
    }

    /// Drops what was not committed; where the arena ends.
    pub fn abandon(&mut self) -> usize {
        if let Some((_, start, _)) = self.open.take() {
            self.arena.truncate(start);
        }
        self.arena.len()
    }

    pub fn datagrams(&self) -> &[Datagram] {
        &self.datagrams
    }

    pub fn bytes(&self, datagram: &Datagram) -> &[u8] {
        &self.arena[datagram.range()]
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
        self.arena.clear();
        self.datagrams.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::StreamId;
    use crate::session::path::Dress;

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
