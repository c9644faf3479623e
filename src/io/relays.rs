//! Sockets of relays: one for an allocation and family, bound when the first peer is permitted that needs it.

use super::ready::{ReadyList, waker};
use super::udp::{self, Batch, Received, Transmit, UdpSocket, Undelivered};
use crate::base::buf::Pool;
use crate::base::id::{AllocationId, IdMap, RelayedAddr};
use crate::engine::relay_table::Family;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

/// System calls for one socket before the others have their turn.
const READS_PER_TURN: usize = 4;

pub type RelayName = (AllocationId, Family);

struct Relay {
    socket: UdpSocket,
    waker: Waker,
}

pub struct Relays {
    relays: IdMap<AllocationId, [Option<Box<Relay>>; 2]>,
    pub ready: Arc<ReadyList<RelayName>>,
    ready_now: Vec<RelayName>,
    /// Which of this host's addresses a relayed one is bound to, where they differ: behind a NAT.
    bound_to: Vec<(IpAddr, IpAddr)>,
}

impl Relays {
    pub fn new(bound_to: Vec<(IpAddr, IpAddr)>) -> Self {
        Self { relays: IdMap::default(), ready: Arc::default(), ready_now: Vec::new(), bound_to }
    }

    pub fn open(&mut self, allocation: AllocationId, at: RelayedAddr) -> io::Result<()> {
        let ip = self.bound_to.iter().find(|(public, _)| *public == at.ip()).map_or(at.ip(), |(_, bound)| *bound);
        let family = Family::of(at.ip());
        let socket = UdpSocket::register_relay(udp::bind_relay(SocketAddr::new(ip, at.0.port()))?)?;
        let name = (allocation, family);
        let relay = Box::new(Relay { socket, waker: waker(name, &self.ready) });
        self.relays.entry(allocation).or_default()[family as usize] = Some(relay);
        // Its first poll registers it.
        self.ready_now.push(name);
        Ok(())
    }

    pub fn close(&mut self, allocation: AllocationId, family: Family) {
        let Some(sockets) = self.relays.get_mut(&allocation) else { return };
        sockets[family as usize] = None;
        if sockets.iter().all(Option::is_none) {
            self.relays.remove(&allocation);
            if self.relays.capacity() > 1024 && self.relays.capacity() > 8 * self.relays.len() {
                self.relays.shrink_to(2 * self.relays.len());
            }
        }
    }

    /// Sockets that have something to read, taken out.
    pub fn take_ready(&mut self, into: &mut Vec<RelayName>) {
        into.append(&mut self.ready_now);
        self.ready.take(into);
        into.sort_unstable_by_key(|(allocation, family)| (*allocation, *family as u8));
        into.dedup();
    }

    /// Reads from one socket; what it has more than its share of, it gives next time.
    pub fn read(&mut self, name: RelayName, batch: &mut Batch, pool: &mut Pool, out: &mut Vec<Received>, failed: &mut Vec<Undelivered>) {
        let Some(relay) = self.relays.get(&name.0).and_then(|sockets| sockets[name.1 as usize].as_ref()) else { return };
        let mut cx = Context::from_waker(&relay.waker);
        for _ in 0..READS_PER_TURN {
            match relay.socket.poll_recv(&mut cx, batch, pool, out) {
                Poll::Pending => return,
                Poll::Ready(true) => {}
                Poll::Ready(false) => relay.socket.undelivered(failed),
            }
        }
        self.ready_now.push(name);
    }

    /// Sends through one relay's socket; how many datagrams were refused.
    pub fn send(&mut self, allocation: AllocationId, dont_fragment: bool, batch: &mut Batch, messages: &[Transmit<'_>]) -> usize {
        let Some(first) = messages.first() else { return 0 };
        let family = Family::of(first.remote.ip());
        let Some(relay) = self.relays.get_mut(&allocation).and_then(|sockets| sockets[family as usize].as_mut()) else {
            return messages.iter().map(Transmit::datagrams).sum();
        };
        if !dont_fragment {
            return relay.socket.send(batch, messages);
        }
        // For every message of a socket or for none: so it is set for this one.
        relay.socket.dont_fragment(true);
        let refused = relay.socket.send(batch, messages);
        relay.socket.dont_fragment(false);
        refused
    }
}
