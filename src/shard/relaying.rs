//! The relay's part of a shard: its messages come in here, and what they carry goes to the SFU by a function call, to another
//! allocation, or out through a socket of the allocation's own.
//!
//! ```text
//! client ──turn_message──> engine/turn ──Deliver──> Shard::media (the SFU; may live on another worker)
//!                                      ──Loop─────> the other allocation's client (may live on another worker)
//!                                      ──Outward──> Egress ──> peer
//! peer ──handle_relayed──> engine/turn ──> Egress or frame queue ──> client
//! ```

use super::counters::Counter;
use super::mail::{Effect, Parcel};
use super::timers::Timer;
use super::{Outcome, Shard};
use crate::base::buf::PacketBuf;
use crate::base::id::{AllocationId, Carrier, ClientAddr, PathId, PeerAddr, RelayedAddr, SessionId, WorkerId};
use crate::base::time::Now;
use crate::engine::relay_ports::Holder;
use crate::engine::relay_table::{Allocation, Family};
use crate::engine::turn::{self, Icmp, Origin, Turn, TurnConfig};
use crate::session::path::{self, Cargo, Route};
use std::ops::Range;
use std::sync::Arc;

impl Shard {
    pub(super) fn turn_message(&mut self, now: Now, carrier: Carrier, client: ClientAddr, buf: &mut PacketBuf) -> Outcome {
        let mut effects = std::mem::take(&mut self.turn_effects);
        let mut reply = std::mem::take(&mut self.turn_reply);
        let stream = match carrier {
            Carrier::Stream(stream) => self.streams.get(&stream),
            Carrier::Udp { .. } => None,
        };
        let (is_tls, server_name) = stream.map_or((false, None), |s| (s.is_tls, s.server_name.as_deref()));
        let outcome = self.turn.handle(now, Origin { carrier, client, is_tls, server_name }, buf, &mut reply, &mut effects);
        let has_answer = !reply.is_empty();
        if has_answer {
            self.answer(now, carrier, &reply);
        }
        self.turn_reply = reply;
        // What is to be passed on is the only effect of its message.
        let passes_on = matches!(effects[..], [turn::Effect::Deliver { .. } | turn::Effect::Loop { .. } | turn::Effect::Outward { .. }]);
        let delivery = if passes_on { effects.pop() } else { None };
        self.turn_effects = effects;
        if !passes_on {
            self.drain_turn(now);
            self.arm_turn();
        }
        match (outcome, delivery) {
            (Err(drop), _) => Outcome::Drop(drop.into()),
            (Ok(()), Some(turn::Effect::Deliver { allocation, peer, payload })) => self.deliver_to_sfu(now, allocation, peer, payload, buf),
            (Ok(()), Some(turn::Effect::Outward { allocation, peer, payload, dont_fragment })) => {
                self.egress.outward(allocation, peer, dont_fragment, &buf[payload]);
                self.counters.count(Counter::RelayedToPeer);
                Outcome::Consumed(Counter::Relayed)
            }
            (Ok(()), Some(turn::Effect::Loop { from, to, payload })) => self.pass_to_allocation(now, from, to, payload, buf),
            (Ok(()), _) if has_answer => Outcome::Consumed(Counter::Answered),
            (Ok(()), _) => Outcome::Consumed(Counter::Absorbed),
        }
    }

    /// An answer of the relay goes back bare: what carries TURN frames it by its own length.
    fn answer(&mut self, now: Now, carrier: Carrier, bytes: &[u8]) {
        self.send(now, Route { carrier, dress: path::Dress::Bare }, bytes);
    }

    /// To the SFU.
    fn deliver_to_sfu(
        &mut self,
        now: Now,
        allocation: AllocationId,
        peer: PeerAddr,
        payload: Range<usize>,
        buf: &mut PacketBuf,
    ) -> Outcome {
        let (Some(relayed), Some(is_moved)) =
            (self.turn.relayed(allocation, Family::of(peer.ip())), self.turn.get(allocation).map(|a| a.has_moved))
        else {
            return Outcome::Drop(Counter::DropTurnNoAllocation);
        };
        keep(buf, payload);
        self.counters.count(Counter::RelayedIn);
        match self.media(now, PathId::Relayed { allocation, peer }, relayed.0, buf, None) {
            Outcome::SendOn(_) if is_moved => Outcome::Drop(Counter::DropRelayMovedTwice),
            Outcome::SendOn(to) => Outcome::MoveRelay { allocation, to, peer },
            other => other,
        }
    }

    /// To another allocation of this server.
    fn pass_to_allocation(&mut self, now: Now, from: RelayedAddr, to: RelayedAddr, payload: Range<usize>, buf: &mut PacketBuf) -> Outcome {
        keep(buf, payload);
        match self.turn.holder(to) {
            Some(Holder::At(worker)) => Outcome::Loop { worker, from, to },
            _ => match self.arrive_at_allocation(now, from, to, buf) {
                Ok(()) => Outcome::Consumed(Counter::Relayed),
                Err(drop) => Outcome::Drop(drop),
            },
        }
    }

    pub(super) fn arrive_at_allocation(&mut self, now: Now, from: RelayedAddr, to: RelayedAddr, payload: &[u8]) -> Result<(), Counter> {
        let (carrier, dress) = self.turn.looped(now.mono, from, to, payload.len())?;
        self.counters.count(Counter::RelayedBetween);
        self.give_client(now, carrier, dress, payload);
        Ok(())
    }

    fn give_client(&mut self, now: Now, carrier: Carrier, dress: turn::Dress, payload: &[u8]) {
        let route = Route { carrier, dress: dress.into() };
        self.egress.slot(route, payload.len()).copy_from_slice(payload);
        self.commit(now, route, payload.len(), Cargo::Relayed);
    }

    /// One datagram from a peer, through a relay's own socket.
    pub fn handle_relayed(&mut self, now: Now, allocation: AllocationId, peer: PeerAddr, buf: PacketBuf) {
        self.counters.count(Counter::DatagramsIn);
        self.guarded_packet(|shard| shard.relayed(now, allocation, peer, buf));
    }

    fn relayed(&mut self, now: Now, allocation: AllocationId, peer: PeerAddr, buf: PacketBuf) {
        let outcome = self.turn.inward(now.mono, allocation, peer, buf.len());
        let counter = match outcome {
            Ok((carrier, dress)) => {
                self.give_client(now, carrier, dress, &buf);
                self.counters.count(Counter::RelayedFromPeer);
                Counter::Relayed
            }
            Err(drop) => drop.into(),
        };
        self.counters.count(counter);
        self.pool.put(buf);
    }

    /// What became of an [`Effect::OpenRelay`].
    pub fn relay_opened(&mut self, now: Now, allocation: AllocationId, family: Family, is_open: bool) {
        self.guarded(|shard| shard.of_turn(now, |turn, out| turn.socket_opened(allocation, family, is_open, out)));
    }

    /// The network could not deliver something to a peer.
    pub fn relay_undelivered(&mut self, now: Now, allocation: AllocationId, peer: PeerAddr, icmp: Icmp) {
        self.guarded(|shard| {
            if let Ok((carrier, bytes)) = shard.turn.undelivered(now.mono, allocation, peer, icmp) {
                shard.answer(now, carrier, &bytes);
            }
        });
    }

    /// What the relay keeps besides allocations: nothing, when there are none.
    pub fn relay_leftovers(&self) -> usize {
        self.turn.leftovers()
    }

    pub(super) fn reconfigure_relay(&mut self, now: Now, config: Arc<TurnConfig>) {
        self.of_turn(now, |turn, out| turn.reconfigure(config, out));
    }

    pub(super) fn drain_relay(&mut self) {
        self.turn.drain();
    }

    /// Does something with the relay, and what that asks for.
    fn of_turn<T>(&mut self, now: Now, act: impl FnOnce(&mut Turn, &mut Vec<turn::Effect>) -> T) -> T {
        let mut effects = std::mem::take(&mut self.turn_effects);
        let outcome = act(&mut self.turn, &mut effects);
        self.turn_effects = effects;
        self.drain_turn(now);
        self.arm_turn();
        outcome
    }

    pub(super) fn release_allocation(&mut self, now: Now, allocation: AllocationId, to: WorkerId) -> Option<Box<Allocation>> {
        self.of_turn(now, |turn, out| turn.release(allocation, to, out)).map(Box::new)
    }

    pub(super) fn adopt_allocation(&mut self, now: Now, allocation: Allocation) {
        self.of_turn(now, |turn, out| turn.adopt(allocation, out));
    }

    pub(super) fn lose_allocation_of(&mut self, now: Now, carrier: Carrier) {
        self.of_turn(now, |turn, out| turn.carrier_lost(carrier, out));
    }

    pub(super) fn end_allocation(&mut self, now: Now, allocation: Allocation) {
        self.of_turn(now, |turn, out| turn.lose(allocation, out));
    }

    pub(super) fn move_allocation(
        &mut self,
        now: Now,
        carrier: Carrier,
        allocation: AllocationId,
        to: WorkerId,
        peer: PeerAddr,
        delivered: PacketBuf,
    ) {
        let Some(allocation) = self.release_allocation(now, allocation, to) else { return self.pool.put(delivered) };
        self.counters.count(Counter::AllocationsMoved);
        self.table.confirm(carrier, to);
        self.effects.push(Effect::Parcel { to, parcel: Parcel::Allocation { allocation, delivered, peer } });
    }

    pub(super) fn wake_turn(&mut self, now: Now) {
        self.of_turn(now, |turn, out| turn.wake(now.mono, out));
    }

    /// Carries out what the relay asked for.
    pub(super) fn drain_turn(&mut self, now: Now) {
        let mut effects = std::mem::take(&mut self.turn_effects);
        for effect in effects.drain(..) {
            match effect {
                turn::Effect::Opened { .. } => self.counters.count(Counter::AllocationsOpened),
                turn::Effect::Closed { allocation, carrier } => {
                    self.counters.count(Counter::AllocationsClosed);
                    if let Some(session) = self.table.by_allocation(allocation) {
                        for path in self.relayed_paths(session, allocation) {
                            self.lose_path(now, path);
                        }
                        self.table.forget_relayed(allocation);
                    }
                    self.give_up(carrier);
                }
                turn::Effect::Refused(refusal) => self.counters.count(refusal.into()),
                turn::Effect::OpenSocket { allocation, at } => self.effects.push(Effect::OpenRelay { allocation, at }),
                turn::Effect::CloseSocket { allocation, family } => self.effects.push(Effect::CloseRelay { allocation, family }),
                turn::Effect::Answer { carrier, bytes } => self.answer(now, carrier, &bytes),
                turn::Effect::Port { port, is_held } => self.tell_others(|| Parcel::Port { port, is_held }),
                turn::Effect::Tally { tallies, is_more } => self.tell_others(|| Parcel::Tally { tallies, is_more }),
                turn::Effect::Deliver { .. } | turn::Effect::Loop { .. } | turn::Effect::Outward { .. } => {}
            }
        }
        self.turn_effects = effects;
    }

    fn tell_others(&mut self, parcel: impl Fn() -> Parcel) {
        let (own, workers) = (self.config.worker, self.config.workers);
        let others = (0..workers).map(WorkerId).filter(|worker| *worker != own);
        self.effects.extend(others.map(|to| Effect::Parcel { to, parcel: parcel() }));
    }

    fn relayed_paths(&self, session: SessionId, allocation: AllocationId) -> Vec<PathId> {
        let is_of = |p: &PathId| matches!(p, PathId::Relayed { allocation: a, .. } if *a == allocation);
        self.sessions.get(&session).map(|s| s.paths().filter(is_of).collect()).unwrap_or_default()
    }

    pub(super) fn arm_turn(&mut self) {
        if let Some(at) = self.turn.deadline() {
            self.timers.arm(Timer::Turn, at);
        }
    }

    /// Whether a session may be reached through an allocation: one whose credentials are a participant's leads to that one alone.
    pub(super) fn may_use(&self, path: PathId, session: SessionId) -> bool {
        let PathId::Relayed { allocation, .. } = path else { return true };
        let Some(sid) = self.turn.participant(allocation) else { return true };
        self.places.get(&session).is_some_and(|place| place.sid == sid)
    }
}

impl From<turn::Dress> for path::Dress {
    fn from(dress: turn::Dress) -> Self {
        match dress {
            turn::Dress::Channel(number) => Self::Channel(number),
            turn::Dress::Indication(peer) => Self::Indication(peer),
        }
    }
}

/// Leaves of a message what it carries.
fn keep(buf: &mut PacketBuf, payload: Range<usize>) {
    buf.advance(payload.start);
    buf.set_len(payload.len());
}
