//! Floor 4: one core's share of the server, as a value: a function of (config, seed, inputs, time). The only place where
//! session, room and TURN meet. `io` drives it with real sockets, `sim` with virtual ones.
//!
//! In: datagrams, frames of connections, commands, parcels of other shards, time. Out: [`Egress`], frame queues of
//! connections, and [`Effect`]s. Every datagram and frame that comes in is counted once more where it ends: consumed or
//! dropped by name; the simulation checks the sum.

pub mod counters;
pub mod egress;
mod fan_out;
mod guard;
pub mod load;
pub mod mail;
mod relaying;
mod rooms;
pub mod store;
pub mod table;
pub mod timers;

use crate::base::buf::{PacketBuf, Pool};
use crate::base::id::{
    AllocationId, Carrier, ClientAddr, IdMap, PathId, PeerAddr, RelayedAddr, RoomId, SessionId, StreamId, TrackId, WorkerId,
};
use crate::base::rng::Rng;
use crate::base::time::{Anchor, Duration, Instant, Now};
use crate::crypto::SecretRng;
use crate::engine::dtls::Identity;
use crate::engine::ice;
use crate::engine::relay_table::{Allocation, Family};
use crate::engine::turn::{self, Turn, TurnConfig};
use crate::room::{Member, Room, Word};
use crate::session::path::{self, Cargo, FrameQueue, Route};
use crate::session::{self, Media, Session, SessionDrop};
use crate::wire::demux::{self, DatagramKind};
use crate::wire::stun::{self, Message};
use counters::{Counter, Counters};
use egress::Egress;
use fan_out::FanOut;
use load::{Departures, Load};
use mail::{Effect, Parcel, PathKind, Report, ServerName, StreamCargo, StreamRole, StreamState};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use store::Store;
use table::{Owner, Table};
use timers::{Timer, Timers};

/// A session is woken at most once a turn, and again after so long at the earliest.
const WAKE_AGAIN: Duration = Duration::from_millis(1);

/// What a bound UDP port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortRole {
    /// ICE checks, DTLS, SRTP.
    Media,
    /// STUN and TURN.
    Turn,
}

/// What a shard is made from.
pub struct ShardConfig {
    pub worker: WorkerId,
    pub workers: u8,
    /// Role of each UDP socket, by `SocketId`.
    pub sockets: Vec<PortRole>,
    pub turn: Arc<TurnConfig>,
    pub identity: Identity,
    pub anchor: Anchor,
    /// Packet buffers kept ready.
    pub buffers: usize,
    /// Memory for what may have to be sent again, bytes.
    pub store_bytes: usize,
}

pub struct Shard {
    config: ShardConfig,
    pub counters: Counters,
    pub load: Load,
    pub pool: Pool,
    pub egress: Egress,
    effects: Vec<Effect>,
    table: Table,
    timers: Timers,
    turn: Turn,
    /// Boxed: a map that grows moves what is in it.
    sessions: IdMap<SessionId, Box<Session>>,
    /// Room and our own half of the ICE credentials of each session.
    places: IdMap<SessionId, Place>,
    rooms: BTreeMap<RoomId, Room>,
    streams: IdMap<StreamId, StreamState>,
    /// Connections that have something to write.
    writable: Vec<StreamId>,
    secrets: SecretRng,
    /// Tracks that an administrator muted: nobody gets what still comes of them.
    silenced: HashSet<TrackId>,
    /// What other workers need of tracks that are not known here yet.
    early_demands: VecDeque<(TrackId, WorkerId, Word)>,
    fan_out: FanOut,
    departures: Departures,
    store: Store,
    turn_reply: Vec<u8>,
    turn_effects: Vec<turn::Effect>,
    session_effects: Vec<session::Effect>,
    /// The session that is being worked for: if that panics, it is to blame.
    at_work: Option<SessionId>,
}

struct Place {
    room: RoomId,
    /// The participant's.
    sid: String,
    ufrags: Vec<String>,
    /// The newest reliable message that came from the participant.
    last_message: u32,
    /// Who gets the packets of its data tracks, by the handle that it sends them under.
    data_routes: HashMap<u16, Vec<(WorkerId, SessionId, u16)>>,
    /// What it was in its room, while it is not there.
    stepped_out: Option<Member>,
    /// Messages for the server itself: since when they are counted, and how many.
    told_server: (Instant, u32),
}

impl Shard {
    pub fn new(config: ShardConfig, secrets: SecretRng, dice: Rng) -> Self {
        Self {
            counters: Counters::default(),
            load: Load::default(),
            pool: Pool::new(config.buffers),
            egress: Egress::default(),
            effects: Vec::new(),
            table: Table::default(),
            timers: Timers::default(),
            turn: Turn::new(Arc::clone(&config.turn), config.worker, dice),
            sessions: IdMap::default(),
            places: IdMap::default(),
            rooms: BTreeMap::new(),
            streams: IdMap::default(),
            writable: Vec::new(),
            secrets,
            silenced: HashSet::new(),
            early_demands: VecDeque::new(),
            fan_out: FanOut::default(),
            departures: Departures::default(),
            store: Store::new(config.store_bytes),
            turn_reply: Vec::new(),
            turn_effects: Vec::new(),
            session_effects: Vec::new(),
            at_work: None,
            config,
        }
    }

    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Memory that the packet store uses, bytes.
    pub fn stored_bytes(&self) -> usize {
        self.store.held()
    }

    pub fn allocations(&self) -> usize {
        self.turn.allocations()
    }

    /// Effects since the last call, oldest first.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Whether the connection was handed to another worker while its frames were being read.
    pub fn knows_stream(&self, stream: StreamId) -> bool {
        self.streams.contains_key(&stream)
    }

    // ---- datagrams ------------------------------------------------------------------------------------------------

    /// One datagram from a socket of this worker.
    pub fn handle_datagram(&mut self, now: Now, carrier: Carrier, buf: PacketBuf) {
        self.counters.count(Counter::DatagramsIn);
        self.guarded_packet(|shard| shard.datagram(now, carrier, buf, None));
    }

    /// `from` is the worker whose socket it came to, when that is not this one.
    fn datagram(&mut self, now: Now, carrier: Carrier, mut buf: PacketBuf, from: Option<WorkerId>) {
        let Carrier::Udp { socket, remote, .. } = carrier else { return };
        let outcome = match self.config.sockets.get(usize::from(socket.0)) {
            Some(PortRole::Media) => self.media(now, path_of(carrier), remote.0, &mut buf, from),
            Some(PortRole::Turn) => match self.table.by_carrier(now.mono, carrier) {
                Some(Owner::Elsewhere(worker)) if from.is_none() => Outcome::SendOn(worker),
                _ => self.turn_message(now, carrier, remote, &mut buf),
            },
            None => Outcome::Drop(Counter::DropUnknownTuple),
        };
        match outcome {
            Outcome::Consumed(counter) | Outcome::Drop(counter) => {
                self.counters.count(counter);
                self.pool.put(buf);
            }
            Outcome::Media(publisher, media) => self.take_media(now, publisher, media, buf),
            Outcome::SendOn(to) => {
                self.counters.count(Counter::Redirected);
                self.effects.push(Effect::Parcel { to, parcel: Parcel::Datagram { carrier, buf } });
            }
            Outcome::MoveRelay { allocation, to, peer } => {
                self.counters.count(Counter::Redirected);
                self.move_allocation(now, carrier, allocation, to, peer, buf);
            }
            Outcome::Loop { worker, from, to } => self.loop_to(worker, from, to, buf),
        }
    }

    /// To an allocation of another worker's.
    fn loop_to(&mut self, worker: WorkerId, from: RelayedAddr, to: RelayedAddr, buf: PacketBuf) {
        self.counters.count(Counter::Redirected);
        self.effects.push(Effect::Parcel { to: worker, parcel: Parcel::Loop { from, to, buf } });
    }

    // ---- connections ----------------------------------------------------------------------------------------------

    /// A connection whose first bytes told what it speaks.
    pub fn stream_opened(&mut self, stream: StreamId, role: StreamRole, remote: std::net::SocketAddr, tls: Option<ServerName>) {
        let (is_tls, server_name) = (tls.is_some(), tls.and_then(|name| name.0));
        self.streams.insert(stream, StreamState { role, remote, is_tls, server_name, queue: FrameQueue::default(), has_moved: false });
    }

    /// One whole frame of a connection. Afterwards the connection may have moved: see [`Shard::knows_stream`].
    pub fn handle_frame(&mut self, now: Now, stream: StreamId, buf: PacketBuf) {
        self.counters.count(Counter::FramesIn);
        self.guarded_packet(|shard| shard.frame(now, stream, buf));
    }

    fn frame(&mut self, now: Now, stream: StreamId, mut buf: PacketBuf) {
        let Some(state) = self.streams.get(&stream) else {
            self.counters.count(Counter::DropUnknownStream);
            return self.pool.put(buf);
        };
        let (role, remote) = (state.role, ClientAddr(state.remote));
        let outcome = match role {
            StreamRole::Ice => self.media(now, PathId::Tcp(stream), remote.0, &mut buf, None),
            StreamRole::Turn => self.turn_message(now, Carrier::Stream(stream), remote, &mut buf),
        };
        match outcome {
            Outcome::Consumed(counter) | Outcome::Drop(counter) => {
                self.counters.count(counter);
                self.pool.put(buf);
            }
            Outcome::Media(publisher, media) => self.take_media(now, publisher, media, buf),
            Outcome::SendOn(_) | Outcome::MoveRelay { .. } if self.streams.get(&stream).is_some_and(|s| s.has_moved) => {
                // Closing it ends what it carries.
                self.counters.count(Counter::DropRelayMovedTwice);
                self.effects.push(Effect::CloseStream { stream });
                self.pool.put(buf);
            }
            Outcome::SendOn(to) => self.move_stream(stream, to, None, None, buf),
            Outcome::MoveRelay { allocation, to, peer } => {
                let allocation = self.release_allocation(now, allocation, to);
                self.move_stream(stream, to, allocation, Some(peer), buf);
            }
            Outcome::Loop { worker, from, to } => self.loop_to(worker, from, to, buf),
        }
    }

    fn move_stream(
        &mut self,
        stream: StreamId,
        to: WorkerId,
        allocation: Option<Box<Allocation>>,
        peer: Option<PeerAddr>,
        delivered: PacketBuf,
    ) {
        let Some(mut state) = self.streams.remove(&stream) else { return self.pool.put(delivered) };
        self.table.forget(Carrier::Stream(stream));
        self.counters.count(Counter::Redirected);
        self.counters.count(Counter::StreamsMoved);
        state.has_moved = true;
        let cargo = Box::new(StreamCargo { state, allocation, delivered, peer });
        self.effects.push(Effect::MoveStream { stream, to, cargo });
    }

    /// A connection was lost on its way to its owner, with what it carried.
    pub fn cargo_lost(&mut self, now: Now, cargo: StreamCargo) {
        self.guarded(|shard| {
            shard.pool.put(cargo.delivered);
            if let Some(allocation) = cargo.allocation {
                shard.end_allocation(now, *allocation);
            }
        });
    }

    /// A connection that another worker accepted and that belongs here.
    pub fn adopt_stream(&mut self, now: Now, stream: StreamId, cargo: StreamCargo) {
        self.guarded_packet(|shard| shard.adopt(now, stream, cargo));
    }

    fn adopt(&mut self, now: Now, stream: StreamId, cargo: StreamCargo) {
        let StreamCargo { state, allocation, mut delivered, peer } = cargo;
        let remote = state.remote;
        if !state.queue.is_empty() {
            self.writable.push(stream);
        }
        self.streams.insert(stream, state);
        let outcome = match (allocation, peer) {
            (Some(allocation), Some(peer)) => {
                let id = allocation.id;
                self.adopt_allocation(now, *allocation);
                self.delivered(now, id, peer, &mut delivered)
            }
            _ => self.media(now, PathId::Tcp(stream), remote, &mut delivered, None),
        };
        self.end_adopted(now, outcome, delivered);
    }

    /// The payload that an allocation came here with.
    fn delivered(&mut self, now: Now, allocation: AllocationId, peer: PeerAddr, payload: &mut [u8]) -> Outcome {
        let Some(relayed) = self.turn.relayed(allocation, Family::of(peer.ip())) else {
            return Outcome::Drop(Counter::DropTurnNoAllocation);
        };
        self.media(now, PathId::Relayed { allocation, peer }, relayed.0, payload, None)
    }

    /// What arrived here with its carrier was counted where it came in; how it ended is still to be named.
    fn end_adopted(&mut self, now: Now, outcome: Outcome, delivered: PacketBuf) {
        let counter = match outcome {
            Outcome::Media(publisher, media) => return self.take_media(now, publisher, media, delivered),
            Outcome::Consumed(counter) | Outcome::Drop(counter) => counter,
            Outcome::SendOn(_) | Outcome::MoveRelay { .. } | Outcome::Loop { .. } => Counter::DropRelayMovedTwice,
        };
        self.counters.count(counter);
        self.pool.put(delivered);
    }

    pub fn stream_closed(&mut self, now: Now, stream: StreamId) {
        self.guarded(|shard| shard.lose_stream(now, stream));
    }

    fn lose_stream(&mut self, now: Now, stream: StreamId) {
        if self.streams.remove(&stream).is_none() {
            return;
        }
        self.lose_path(now, PathId::Tcp(stream));
        self.lose_allocation_of(now, Carrier::Stream(stream));
    }

    /// Connections that have frames to write; each is named at least once.
    pub fn take_writable(&mut self) -> Vec<StreamId> {
        std::mem::take(&mut self.writable)
    }

    /// Moves frames of about `budget` bytes to `out`, in plaintext.
    pub fn take_frames(&mut self, stream: StreamId, budget: usize, out: &mut Vec<u8>) {
        if let Some(state) = self.streams.get_mut(&stream) {
            state.queue.take(budget, out);
        }
    }

    /// Whether the connection carries an allocation or a checked path.
    pub fn uses_stream(&self, now: Now, stream: StreamId) -> bool {
        let carrier = Carrier::Stream(stream);
        self.turn.id_of(carrier).is_some() || self.table.by_carrier(now.mono, carrier).is_some()
    }

    pub fn has_frames(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_some_and(|s| !s.queue.is_empty())
    }

    // ---- paths ----------------------------------------------------------------------------------------------------

    /// Tells the worker that receives this carrier's packets that they are nobody's now.
    fn give_up(&mut self, carrier: Carrier) {
        self.table.forget(carrier);
        if let Some(to) = self.table.take_receiver(carrier) {
            self.effects.push(Effect::Parcel { to, parcel: Parcel::Withdraw { carrier } });
        }
    }

    // ---- media ----------------------------------------------------------------------------------------------------

    /// One packet for the SFU, however it came: STUN by ufrag before any look-up of tuples, the rest by its path.
    fn media(&mut self, now: Now, path: PathId, seen_as: std::net::SocketAddr, packet: &mut [u8], from: Option<WorkerId>) -> Outcome {
        let kind = demux::datagram(packet);
        if kind == DatagramKind::Stun {
            return self.check(now, path, seen_as, packet, from);
        }
        let session = match self.owner_of(now, path) {
            Some(Owner::Here(session)) => Some(session),
            Some(Owner::Elsewhere(worker)) if from.is_none() => return Outcome::SendOn(worker),
            _ => None,
        };
        match kind {
            DatagramKind::Dtls | DatagramKind::Rtp => {}
            DatagramKind::Quic => return Outcome::Drop(Counter::DropQuic),
            DatagramKind::ChannelData | DatagramKind::Unknown | DatagramKind::Stun => return Outcome::Drop(Counter::DropUnknownKind),
        }
        let Some(id) = session else { return Outcome::Drop(Counter::DropUnknownTuple) };
        self.at_work = Some(id);
        let outcome = match kind {
            DatagramKind::Dtls => self.dtls(now, id, path, packet),
            _ if demux::is_rtcp(packet) => self.rtcp(now, id, path, packet),
            _ => match self.rtp(now, id, path, packet) {
                Ok(Some(media)) => {
                    self.arm_session(id);
                    return Outcome::Media(id, media);
                }
                Ok(None) => Ok(Counter::MediaIn),
                Err(drop) => Err(drop),
            },
        };
        self.arm_session(id);
        match outcome {
            Ok(counter) => Outcome::Consumed(counter),
            Err(drop) => Outcome::Drop(drop.into()),
        }
    }

    fn check(&mut self, now: Now, path: PathId, seen_as: std::net::SocketAddr, packet: &[u8], from: Option<WorkerId>) -> Outcome {
        let check = match Message::decode(packet) {
            Ok(message) => message,
            Err(stun::Refused::Malformed) => return Outcome::Drop(Counter::DropMalformedStun),
            Err(stun::Refused::UnknownMethod) => return Outcome::Drop(Counter::DropStunMethod),
            Err(stun::Refused::BadFingerprint) => return Outcome::Drop(Counter::DropFingerprint),
        };
        // A minted TURN user name has a colon too.
        let usernames = ice::usernames(&check).filter(|_| check.method == stun::Method::Binding);
        let Some((ufrag, _)) = usernames else { return Outcome::Drop(Counter::DropTurnOnMediaPort) };
        let Some(id) = self.table.by_ufrag(ufrag) else {
            return match table::owner_of(ufrag, self.config.workers) {
                Some(owner) if owner != self.config.worker && from.is_none() => {
                    // A connection or an allocation moves; only a UDP tuple is sent on packet by packet.
                    if let PathId::Udp { .. } = path
                        && let Some(carrier) = carrier_of(path)
                        && !self.table.provisional(now.mono, carrier, owner)
                    {
                        self.counters.count(Counter::RedirectTableFull);
                    }
                    Outcome::SendOn(owner)
                }
                _ => Outcome::Drop(Counter::DropUnknownUfrag),
            };
        };
        if !self.may_use(path, id) {
            return Outcome::Drop(Counter::DropRelayOfAnother);
        }
        self.at_work = Some(id);
        let Some(session) = self.sessions.get_mut(&id) else { return Outcome::Drop(Counter::DropUnknownUfrag) };
        let mut effects = std::mem::take(&mut self.session_effects);
        let outcome = session.handle_check(now.mono, path, seen_as, &check, &mut effects);
        if outcome.is_ok()
            && let Some(carrier) = carrier_of(path)
        {
            if !self.table.is_of(carrier, id) {
                self.table.validated(carrier, id);
            }
            if let Some(worker) = from {
                self.table.received_by(carrier, worker);
                self.effects.push(Effect::Parcel { to: worker, parcel: Parcel::Confirm { carrier } });
            }
        }
        self.drain_session(now, id, effects);
        self.arm_session(id);
        match outcome {
            Ok(()) => Outcome::Consumed(Counter::Answered),
            Err(drop) => Outcome::Drop(drop.into()),
        }
    }

    fn dtls(&mut self, now: Now, id: SessionId, path: PathId, packet: &[u8]) -> Result<Counter, SessionDrop> {
        let session = self.sessions.get_mut(&id).ok_or(SessionDrop::UnknownSource)?;
        let mut effects = std::mem::take(&mut self.session_effects);
        let outcome = session.handle_dtls(now.mono, path, packet, &mut effects);
        let counter = if effects.is_empty() { Counter::Absorbed } else { Counter::Answered };
        self.drain_session(now, id, effects);
        outcome.map(|()| counter)
    }

    fn rtcp(&mut self, now: Now, id: SessionId, path: PathId, packet: &mut [u8]) -> Result<Counter, SessionDrop> {
        let session = self.sessions.get_mut(&id).ok_or(SessionDrop::UnknownSource)?;
        let mut effects = std::mem::take(&mut self.session_effects);
        let outcome = session.handle_rtcp(now.mono, path, packet, &mut effects);
        self.drain_session(now, id, effects);
        outcome.map(|()| Counter::MediaIn)
    }

    fn rtp(&mut self, now: Now, id: SessionId, path: PathId, packet: &mut [u8]) -> Result<Option<Media>, SessionDrop> {
        let session = self.sessions.get_mut(&id).ok_or(SessionDrop::UnknownSource)?;
        let mut effects = std::mem::take(&mut self.session_effects);
        let outcome = session.handle_rtp(now.mono, path, packet, &mut effects);
        self.drain_session(now, id, effects);
        outcome
    }

    /// Bytes for one client, dressed for its route.
    fn send(&mut self, now: Now, route: Route, payload: &[u8]) {
        self.egress.slot(route, payload.len()).copy_from_slice(payload);
        let is_dtls = demux::datagram(payload) == DatagramKind::Dtls;
        self.commit(now, route, payload.len(), if is_dtls { Cargo::Data } else { Cargo::Answer });
    }

    fn commit(&mut self, now: Now, route: Route, len: usize, cargo: Cargo) {
        if cargo != Cargo::Relayed && matches!(route.dress, path::Dress::Channel(_) | path::Dress::Indication(_)) {
            self.counters.count(Counter::RelayedOut);
        }
        match (self.egress.commit(len), route.carrier) {
            (Some(frame), Carrier::Stream(stream)) => {
                let Some(state) = self.streams.get_mut(&stream) else { return self.counters.count(Counter::DropUnknownStream) };
                if state.queue.push(now.mono, frame, cargo) {
                    self.counters.count(Counter::FramesOut);
                    self.writable.push(stream);
                } else {
                    self.counters.count(Counter::DropStreamQueue);
                }
            }
            _ => self.counters.count(Counter::DatagramsOut),
        }
    }

    // ---- sessions -------------------------------------------------------------------------------------------------

    /// Carries out what a session asked for, and puts the vector back for the next call.
    fn drain_session(&mut self, now: Now, id: SessionId, mut effects: Vec<session::Effect>) {
        // Reports to hearers come out of other sessions while this one's effects are carried out.
        let mut ended = false;
        for effect in effects.drain(..) {
            self.at_work = Some(id);
            match effect {
                session::Effect::Send { path, bytes } => match route_of(&self.turn, now, path) {
                    Some(route) => self.send(now, route, &bytes),
                    None => self.counters.count(Counter::DropRelayNoRoute),
                },
                session::Effect::PathValidated(path) => match path {
                    PathId::Relayed { allocation, .. } => self.table.validated_relayed(allocation, id),
                    PathId::Udp { .. } | PathId::Tcp(_) => {
                        if let Some(carrier) = carrier_of(path) {
                            self.table.validated(carrier, id);
                        }
                    }
                },
                session::Effect::PathDropped(path) => self.drop_path(id, path),
                session::Effect::PathSelected(path) => {
                    let kind = self.kind_of(path);
                    self.effects.push(Effect::Report(Report::Path { session: id, kind }));
                    if self.sessions.get(&id).is_some_and(|s| s.state() == session::State::Live) {
                        self.go_live(id);
                    }
                }
                session::Effect::Live { profile } => {
                    self.go_live(id);
                    self.effects.push(Effect::Report(Report::Live { session: id, profile }));
                }
                session::Effect::KeyFrameWanted(track) => {
                    let Some(room_id) = self.places.get(&id).map(|p| p.room) else { continue };
                    let room = self.rooms.get_mut(&room_id);
                    if let Some(layer) = room.and_then(|r| r.key_frame_wanted(now.mono, track, id)) {
                        self.counters.count(Counter::KeyFrameHearer);
                        self.session_effects = Vec::new();
                        self.ask_key_frame(now, room_id, track, layer);
                    }
                }
                session::Effect::Resend { track, layer, sequence } => self.resend(now, id, track, layer, sequence),
                session::Effect::ResendRefused => self.counters.count(Counter::ResendRefused),
                session::Effect::LayerEnded { track, layer } => {
                    if let Some(room) = self.places.get(&id).and_then(|p| self.rooms.get_mut(&p.room)) {
                        room.layer_ended(track, layer);
                    }
                }
                session::Effect::Told(told) => {
                    self.counters.add(Counter::FeedbackReceived, u64::from(told.received));
                    self.counters.add(Counter::FeedbackLost, u64::from(told.lost));
                }
                session::Effect::Nacked(n) => self.counters.add(Counter::Nacked, n as u64),
                session::Effect::PictureLost { track, layer } => {
                    let Some(room_id) = self.places.get(&id).map(|p| p.room) else { continue };
                    if self.rooms.get_mut(&room_id).is_some_and(|r| r.picture_lost(now.mono, track, layer)) {
                        self.counters.count(Counter::KeyFrameRepair);
                        self.session_effects = Vec::new();
                        self.ask_key_frame(now, room_id, track, layer);
                    }
                }
                session::Effect::Data { delivery, bytes } => self.data(now, id, delivery, &bytes),
                session::Effect::DataTrack(packet) => self.data_track(now, id, packet),
                session::Effect::StreamState { track, is_paused } => {
                    self.effects.push(Effect::Report(Report::StreamState { session: id, track, is_paused }));
                }
                session::Effect::Layer { track, layer } => self.effects.push(Effect::Report(Report::Layer { session: id, track, layer })),
                session::Effect::Silent { was_busy } => self.effects.push(Effect::Report(Report::Silent { session: id, was_busy })),
                session::Effect::Sampled(sample) => self.effects.push(Effect::Report(Report::Quality { session: id, sample })),
                session::Effect::Unreachable => self.effects.push(Effect::Report(Report::Unreachable { session: id })),
                session::Effect::Ended(end, detail) => {
                    ended = true;
                    self.effects.push(Effect::Report(Report::Ended { session: id, end, detail }));
                }
            }
        }
        self.session_effects = effects;
        if ended {
            self.close(now, id);
        }
    }

    /// A session has keys and a way: what it hears may begin.
    fn go_live(&mut self, id: SessionId) {
        let Some(place) = self.places.get_mut(&id) else { return };
        let room_id = place.room;
        place.stepped_out.iter_mut().for_each(|m| m.is_live = true);
        if self.rooms.get_mut(&room_id).is_some_and(|room| room.go_live(id)) {
            self.tell_homes(room_id);
        }
    }

    fn kind_of(&self, path: PathId) -> PathKind {
        match path {
            PathId::Udp { .. } => PathKind::Udp,
            PathId::Tcp(_) => PathKind::Tcp,
            PathId::Relayed { allocation, .. } => match self.turn.get(allocation).map(|a| a.carrier) {
                Some(Carrier::Stream(stream)) if self.streams.get(&stream).is_some_and(|s| s.is_tls) => PathKind::RelayTls,
                Some(Carrier::Stream(_)) => PathKind::RelayTcp,
                Some(Carrier::Udp { .. }) | None => PathKind::RelayUdp,
            },
        }
    }

    fn lose_path(&mut self, now: Now, path: PathId) {
        if let Some(Owner::Here(id)) = self.owner_of(now, path) {
            self.at_work = Some(id);
            if let Some(session) = self.sessions.get_mut(&id) {
                let mut effects = Vec::new();
                session.path_lost(path, &mut effects);
                self.drain_session(now, id, effects);
            }
        }
        if let Some(carrier) = carrier_of(path) {
            self.table.forget(carrier);
        }
    }

    fn owner_of(&self, now: Now, path: PathId) -> Option<Owner> {
        match path {
            PathId::Relayed { allocation, .. } => self.table.by_allocation(allocation).map(Owner::Here),
            PathId::Udp { .. } | PathId::Tcp(_) => self.table.by_carrier(now.mono, carrier_of(path)?),
        }
    }

    fn close(&mut self, now: Now, id: SessionId) {
        let Some(mut session) = self.sessions.remove(&id) else { return };
        self.at_work = Some(id);
        self.effects.push(Effect::Report(Report::Closed { session: id, rest: session.last_sample(now.mono) }));
        let mut effects = Vec::new();
        session.close(now.mono, &mut effects);
        for effect in effects {
            if let session::Effect::Send { path, bytes } = effect
                && let Some(route) = route_of(&self.turn, now, path)
            {
                self.send(now, route, &bytes);
            }
        }
        let paths: Vec<PathId> = session.paths().collect();
        self.forget_session(id, &paths);
    }

    /// A session is gone: nothing leads to it any more.
    fn forget_session(&mut self, id: SessionId, paths: &[PathId]) {
        for path in paths {
            self.drop_path(id, *path);
        }
        if let Some(place) = self.places.remove(&id) {
            for ufrag in &place.ufrags {
                self.table.remove_ufrag(ufrag);
            }
            self.leave_room(id, place.room);
        }
        self.timers.forget(Timer::Session(id));
        self.counters.count(Counter::SessionsClosed);
        self.load.set_sessions(self.sessions.len());
    }

    /// A track is no more.
    fn forget_track(&mut self, track: TrackId) {
        self.store.forget(track);
        self.silenced.remove(&track);
        self.early_demands.retain(|(t, ..)| *t != track);
    }

    /// A session gives a path up, unless another has it by now.
    fn drop_path(&mut self, id: SessionId, path: PathId) {
        match (path, carrier_of(path)) {
            (PathId::Relayed { allocation, .. }, _) => self.table.forget_relayed_of(allocation, id),
            (_, Some(carrier)) if self.table.is_of(carrier, id) => {
                self.give_up(carrier);
                if let Carrier::Stream(stream) = carrier {
                    self.effects.push(Effect::CloseStream { stream });
                }
            }
            _ => {}
        }
    }

    fn arm_session(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get(&id) {
            self.timers.arm(Timer::Session(id), session.deadline());
        }
    }

    // ---- mail -----------------------------------------------------------------------------------------------------

    /// A parcel from another worker.
    pub fn handle_parcel(&mut self, now: Now, from: WorkerId, parcel: Parcel) {
        match parcel {
            Parcel::Datagram { carrier, buf } => self.guarded_packet(|shard| shard.datagram(now, carrier, buf, Some(from))),
            other => drop(self.guarded(|shard| shard.parcel(now, from, other))),
        }
    }

    fn parcel(&mut self, now: Now, from: WorkerId, parcel: Parcel) {
        match parcel {
            Parcel::Datagram { carrier, buf } => self.datagram(now, carrier, buf, Some(from)),
            Parcel::Confirm { carrier } => self.table.confirm(carrier, from),
            Parcel::Withdraw { carrier } => self.table.withdraw(carrier, from),
            Parcel::Media { room, publisher, media, buf } => self.take_packet(now, room, publisher, *media, buf),
            Parcel::Word { room, track, word } => self.take_word(now, from, room, track, word),
            Parcel::Data { room, delivery, bytes } => self.pass_data(now, room, None, delivery, &bytes),
            Parcel::DataTrack { hearers, bytes } => self.pass_data_track(now, &hearers, bytes),
            Parcel::Allocation { allocation, mut delivered, peer } => {
                let (id, carrier) = (allocation.id, allocation.carrier);
                self.adopt_allocation(now, *allocation);
                self.table.received_by(carrier, from);
                let outcome = self.delivered(now, id, peer, &mut delivered);
                self.end_adopted(now, outcome, delivered);
            }
            Parcel::Loop { from, to, buf } => {
                let outcome = self.arrive_at_allocation(now, from, to, &buf);
                self.counters.count(outcome.err().unwrap_or(Counter::Relayed));
                self.pool.put(buf);
            }
            Parcel::Port { port, is_held } => self.turn.port_held(port, from, is_held),
            Parcel::Tally { tallies, is_more } => self.turn.tallied(tallies, is_more),
        }
    }

    // ---- time -----------------------------------------------------------------------------------------------------

    /// Does everything that is due, and gives what this turn brought to its hearers: again, as long as [`Shard::is_behind`], once
    /// what was written has left.
    pub fn wake(&mut self, now: Now) {
        self.guarded(|shard| {
            shard.fan_out(now);
            shard.do_due(now);
        });
    }

    fn do_due(&mut self, now: Now) {
        while let Some(timer) = self.timers.pop_due(now.mono) {
            match timer {
                Timer::Session(id) => {
                    self.at_work = Some(id);
                    if let Some(session) = self.sessions.get_mut(&id) {
                        let mut effects = std::mem::take(&mut self.session_effects);
                        session.wake(now.mono, &mut effects);
                        // Before its effects, which others may fail at. Whatever is due still, of a foreign crate's say, must not
                        // keep this turn from ending.
                        self.timers.arm(Timer::Session(id), session.deadline().max(now.mono + WAKE_AGAIN));
                        self.drain_session(now, id, effects);
                        if let Some(session) = self.sessions.get(&id) {
                            self.timers.arm(Timer::Session(id), session.deadline().max(now.mono + WAKE_AGAIN));
                        }
                    }
                }
                Timer::Speakers(id) => {
                    self.at_work = None;
                    if let Some(room) = self.rooms.get_mut(&id) {
                        let mut changes = Vec::new();
                        room.speakers.wake(now.mono, &mut changes);
                        if let Some(at) = room.speakers.deadline() {
                            self.timers.arm(Timer::Speakers(id), at);
                        }
                        if !changes.is_empty() {
                            self.effects.push(Effect::Report(Report::Speakers { room: id, changes }));
                        }
                    }
                }
                Timer::Turn => {
                    self.at_work = None;
                    self.wake_turn(now);
                }
            }
        }
    }

    /// Whether media was written since [`Shard::has_left`].
    pub fn has_departures(&self) -> bool {
        !self.departures.is_empty()
    }

    /// All that was written has been handed to the kernel, or waits for its connection.
    pub fn has_left(&mut self, now: Instant) {
        self.departures.left(now, &self.load);
    }

    pub fn deadline(&mut self) -> Option<Instant> {
        self.timers.deadline()
    }
}

/// Where one packet ended.
#[allow(clippy::large_enum_variant, reason = "one a packet: a box would be an allocation for each")]
enum Outcome {
    Consumed(Counter),
    Drop(Counter),
    /// Media of this session, for the end of the turn.
    Media(SessionId, Media),
    /// It belongs to another worker.
    SendOn(WorkerId),
    /// The relay's client belongs to a session of another worker: it goes there for good.
    MoveRelay {
        allocation: AllocationId,
        to: WorkerId,
        peer: PeerAddr,
    },
    /// What the relay's client sends is for an allocation of another worker.
    Loop {
        worker: WorkerId,
        from: RelayedAddr,
        to: RelayedAddr,
    },
}

fn path_of(carrier: Carrier) -> PathId {
    match carrier {
        Carrier::Udp { socket, local, remote } => PathId::Udp { socket, local, remote },
        Carrier::Stream(stream) => PathId::Tcp(stream),
    }
}

/// What carries a direct path; a relayed one is carried by its allocation's client.
fn carrier_of(path: PathId) -> Option<Carrier> {
    match path {
        PathId::Udp { socket, local, remote } => Some(Carrier::Udp { socket, local, remote }),
        PathId::Tcp(stream) => Some(Carrier::Stream(stream)),
        PathId::Relayed { .. } => None,
    }
}

/// How bytes for this path leave; `None` when the relay no longer permits them.
fn route_of(turn: &Turn, now: Now, path: PathId) -> Option<Route> {
    Some(match path {
        PathId::Udp { .. } => Route { carrier: carrier_of(path)?, dress: path::Dress::Bare },
        PathId::Tcp(_) => Route { carrier: carrier_of(path)?, dress: path::Dress::Rfc4571 },
        PathId::Relayed { allocation, peer } => {
            let carrier = turn.get(allocation)?.carrier;
            Route { carrier, dress: turn.dress(now.mono, allocation, peer)?.into() }
        }
    })
}
