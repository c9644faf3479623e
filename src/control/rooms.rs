//! Rooms, participants, tracks and subscriptions: what everybody in a room knows, and what each is told.
//!
//! Everything here runs under one lock, without awaiting. Towards the data plane go [`Command`]s, towards each client
//! signal messages into its bounded queue; a client that does not read is cut off and may resume. What other systems
//! should know goes to the webhooks as events.
//!
//! This file has the values and what is said to whom; what is done to them stands in one file a subject below.

mod absence;
mod backup;
mod data;
mod joining;
mod lifetime;
mod negotiating;
mod notes;
mod one_shot;
mod overview;
mod permissions;
mod placement;
mod publishing;
mod quality;
mod sections;
mod service;
mod subscribing;

pub use data::RpcError;
pub use joining::{Arrival, Caller};
pub use one_shot::{Opened, Purpose, Restarted};
pub use overview::Overview;
pub use service::{Failure, Later, RoomService};

use self::sections::Sections;
use super::audit::Audit;
use super::auth::{Claims, Keys};
use super::metrics::Gauges;
use super::webhook::Events;
use crate::base::id::{RoomId, SessionId, Ssrc, TrackId, WorkerId};
use crate::crypto::SecretRng;
use crate::engine::ice::Credentials;
use crate::engine::turn_auth::Secrets;
use crate::session::negotiate::{Candidates, Playout};
use crate::shard::mail::{Command, PathKind, Report};
use crate::wire::rtp::Codec;
use crate::wire::sdp::{Kind, SdpError};
use livekit_protocol as proto;
use livekit_protocol::signal_response::Message as Down;
use negotiating::Subscriber;
use quality::{Demand, Samples, Scores};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;

/// Messages that wait for a client before it counts as too slow.
pub const SIGNAL_QUEUE: usize = 512;
pub const PING_INTERVAL_S: i32 = 5;
pub const PING_TIMEOUT_S: i32 = 15;
/// Attribute of a participant that tells which way its media takes: `udp`, `tcp`, `relay/udp`, `relay/tcp`, `relay/tls`.
const PATH_ATTRIBUTE: &str = "postern.path";
/// Protocol of the room service that this server speaks.
const PROTOCOL: i32 = 16;
/// The release of the protocol's first server whose abilities this one has: SDKs look at it before they make calls (RPC from
/// 1.8 on) or leave things out. Our own version stands in `debug_info`.
const SPOKEN_VERSION: &str = "1.13.0";

/// Where commands for a worker go.
pub type Mail = Arc<dyn Fn(WorkerId, Command) + Send + Sync>;
/// What a client's connection writes. Boxed: a queue has room for 32 at once, and most clients wait for nothing.
pub type Signal = mpsc::Sender<Box<Down>>;

/// What the control plane needs to know of the rest of the server.
pub struct Surroundings {
    pub workers: u8,
    pub mail: Mail,
    pub keys: Keys,
    pub turn: Secrets,
    pub fingerprint: String,
    pub candidates: Candidates,
    pub ports: Ports,
    pub rooms: crate::config::Rooms,
    pub tracks_per_participant: usize,
    pub node: String,
    pub gauges: Arc<Gauges>,
    pub events: Events,
    pub audit: Audit,
}

/// Ports that ICE server URLs name.
#[derive(Clone, Copy)]
pub struct Ports {
    pub turn: Option<u16>,
    pub edge: u16,
}

/// Why a join failed, as HTTP answers it.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("requested room does not exist")]
    RoomMissing,
    #[error("the room is full")]
    RoomFull,
    #[error("this server is about to stop and opens no room; try again soon, or another one")]
    Draining,
    #[error("the token does not allow this: WHIP needs canPublish or canPublishSources, WHEP canSubscribe")]
    NotAllowed,
    #[error("this token was revoked: the participant was removed from the room")]
    Revoked,
    #[error("name, metadata or attributes are too long")]
    TooLong,
    #[error("the offer cannot be answered: {0}")]
    Offer(#[from] SdpError),
}

impl JoinError {
    /// As `postern_joins_total` counts it.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::RoomMissing => "room_missing",
            Self::RoomFull => "room_full",
            Self::Draining => "draining",
            Self::NotAllowed => "not_allowed",
            Self::Revoked => "token_revoked",
            Self::TooLong | Self::Offer(_) => "bad_request",
        }
    }
}

pub(super) struct Track {
    pub(super) id: TrackId,
    pub(super) cid: String,
    pub(super) info: proto::TrackInfo,
    /// Section that carries it; `None` until an offer has it.
    pub(super) mid: Option<String>,
    /// It was muted against its publisher's will.
    pub(super) is_silenced: bool,
    pub(super) hearing: Hearing,
    pub(super) demand: Demand,
    /// It is the picture of the track before it that has the same sid, in a codec that more clients can decode.
    pub(super) is_backup: bool,
}

impl Track {
    /// One that no offer carries yet.
    pub(super) fn new(id: TrackId, cid: String, info: proto::TrackInfo) -> Self {
        let demand = Demand::of_all_layers();
        Self { id, cid, info, mid: None, is_silenced: false, hearing: Hearing::Nobody, demand, is_backup: false }
    }

    /// Others are told of it.
    pub(super) fn is_published(&self) -> bool {
        self.mid.is_some() && !self.is_backup
    }
}

/// Whether a publisher knows that somebody subscribes to a track of its.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hearing {
    Nobody,
    /// Somebody does since then. SDKs forget what they are told of a publication before they have its answer: it waits a little.
    Untold(Instant),
    Told,
}

pub(super) struct Subscription {
    pub(super) track: TrackId,
    pub(super) sid: String,
    pub(super) publisher: SessionId,
    pub(super) publisher_sid: String,
    /// Stream that the track belongs to on the client, so that sound and picture of one source are played together.
    pub(super) stream: String,
    /// The worker that owns the publisher.
    pub(super) home: WorkerId,
    pub(super) kind: Kind,
    pub(super) codec: Option<Codec>,
    /// What is taken instead by a client that has no such codec.
    pub(super) backup: Option<backup::Backup>,
    /// Its publisher sends it: a backup comes only once it is needed.
    pub(super) is_published: bool,
    /// Its publisher allows redundancy.
    pub(super) redundancy: bool,
    pub(super) ssrc: Ssrc,
    pub(super) rtx: Ssrc,
    pub(super) mid: Option<String>,
    /// The publisher lets this participant have it.
    pub(super) is_allowed: bool,
    /// The data plane was told to send it.
    pub(super) is_routed: bool,
    pub(super) enabled: bool,
    pub(super) layer_max: u8,
    pub(super) temporal_max: u8,
    /// The layer of a picture that is sent to it, and whether its path takes nothing of it.
    pub(super) layer: Option<u8>,
    pub(super) is_paused: bool,
}

impl Subscription {
    /// The layer that it wants, if anything.
    fn layer_wanted(&self) -> Option<u8> {
        self.enabled.then_some(self.layer_max)
    }

    pub(super) fn waits_for_section(&self) -> bool {
        self.mid.is_none() && self.is_allowed && self.is_published
    }
}

/// One peer connection: our half of it.
pub(super) struct Transport {
    pub(super) session: SessionId,
    pub(super) credentials: Credentials,
    pub(super) remote_ufrag: String,
    /// Descriptions that we have written.
    pub(super) descriptions: u64,
}

/// How a participant is talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialogue {
    /// Signalling over a WebSocket.
    Signal,
    /// One offer, one answer: WHIP and WHEP.
    OneShot,
}

pub(super) struct Participant {
    pub(super) worker: WorkerId,
    pub(super) sid: String,
    /// Its name here: the session of its first transport.
    pub(super) session: SessionId,
    pub(super) claims: Claims,
    pub(super) info: proto::ParticipantInfo,
    pub(super) tracks: Vec<Track>,
    pub(super) subscriptions: Vec<Subscription>,
    pub(super) auto_subscribe: bool,
    /// It can play sound and picture of one stream in time with each other.
    pub(super) syncs_streams: bool,
    pub(super) dialogue: Dialogue,
    pub(super) signal: Option<Signal>,
    pub(super) signal_lost_at: Option<Instant>,
    /// A client that is back, and the name by which it reached us, until its worker has told what came of its messages.
    pub(super) resuming: Option<(Signal, String)>,
    pub(super) token_due: Instant,
    pub(super) joined_at: Instant,
    /// Since when it is here, and since when it could connect: one who was away for a while comes anew.
    pub(super) came_at: Instant,
    pub(super) described_at: Option<Instant>,
    /// What the client publishes over; with a single peer connection all that it hears too.
    pub(super) first: Transport,
    /// The second peer connection of those who let the server offer.
    pub(super) subscriber: Option<Subscriber>,
    pub(super) sections: Sections,
    /// Whom it lets have its tracks; `None` is everybody.
    pub(super) listeners: Option<proto::SubscriptionPermission>,
    pub(super) one_shot: Option<one_shot::OneShot>,
    pub(super) data_tracks: Vec<data::DataTrack>,
    pub(super) path: Option<PathKind>,
    /// The way that fell silent last, and when, until it is seen what the client found instead.
    pub(super) silent: Option<(PathKind, Instant)>,
    pub(super) scores: Scores,
    pub(super) samples: Samples,
    /// Where its signalling came from.
    pub(super) address: Option<IpAddr>,
    /// What it says of the program that it is.
    pub(super) client: String,
}

impl Participant {
    /// Its weight for a worker.
    fn streams(&self) -> usize {
        1 + self.subscriptions.len()
    }

    /// The session that tracks are sent over.
    pub(super) fn ear(&self) -> SessionId {
        self.subscriber.as_ref().map_or(self.session, |s| s.transport.session)
    }

    /// What is sent to it, by the sections that carry it.
    fn carried_sids(&self) -> HashMap<String, String> {
        self.subscriptions.iter().filter_map(|s| Some((s.mid.clone()?, s.sid.clone()))).collect()
    }

    fn sessions(&self) -> impl Iterator<Item = SessionId> {
        [Some(self.session), self.subscriber.as_ref().map(|s| s.transport.session)].into_iter().flatten()
    }

    fn is_hidden(&self) -> bool {
        self.info.permission.as_ref().is_some_and(|p| p.hidden)
    }

    fn is_active(&self) -> bool {
        self.info.state == proto::participant_info::State::Active as i32
    }
}

struct Room {
    id: RoomId,
    info: proto::Room,
    /// Sound and picture of one source are to be played together.
    sync_streams: bool,
    /// How long pictures are to be held back.
    playout: Option<Playout>,
    participants: Vec<Participant>,
    /// Who dropped out and may still resume; nobody sees them.
    absent: Vec<absence::Absent>,
    /// Who left lately: a client whose signalling was away is told on its return.
    departed: Vec<(Instant, proto::ParticipantInfo)>,
    /// Updates about those who do not publish, kept for a moment: in a big room they come by the hundred.
    late_news: BTreeMap<String, proto::ParticipantInfo>,
    late_news_due: Option<Instant>,
    /// Somebody came or went since the last `RoomUpdate`.
    has_changed: bool,
    /// Nobody is here since then.
    empty_since: Option<Instant>,
    /// Somebody was here.
    was_joined: bool,
    /// Nonces of the room service's latest messages.
    nonces: VecDeque<(Instant, Vec<u8>)>,
    /// Nobody publishes anything since then; kept while the server drains.
    idle_since: Option<Instant>,
    /// Who was taken out, and from when on a token must be valid to let it in again, seconds since 1970.
    revoked: HashMap<String, i64>,
    /// Ways that failed participants lately.
    unstable: HashMap<String, lifetime::Unstable>,
}

pub struct Rooms {
    around: Surroundings,
    rooms: BTreeMap<String, Room>,
    /// Room of each session.
    places: HashMap<SessionId, String>,
    /// Where in its room's list each session's participant was found last: of a thousand, the right one at once.
    seats: HashMap<SessionId, usize>,
    /// Streams that each worker carries.
    loads: Vec<usize>,
    made: u64,
    secrets: SecretRng,
    rpcs: data::Rpcs,
    notes: notes::Notes,
    /// The server is about to stop: no room is opened any more.
    is_draining: bool,
}

#[allow(clippy::disallowed_methods, reason = "the control plane may look at the clock")]
fn wall() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

#[allow(clippy::disallowed_methods, reason = "the control plane may look at the clock")]
fn mono() -> Instant {
    Instant::now()
}

impl Rooms {
    pub fn new(around: Surroundings) -> Self {
        Self {
            loads: vec![0; usize::from(around.workers)],
            around,
            rooms: BTreeMap::new(),
            places: HashMap::new(),
            seats: HashMap::new(),
            made: 0,
            secrets: SecretRng::system(),
            rpcs: data::Rpcs::default(),
            notes: notes::Notes::default(),
            is_draining: false,
        }
    }

    /// The config was read again: what comes from now on is treated so.
    pub fn reconfigure(&mut self, rooms: &crate::config::Rooms, tracks_per_participant: usize) {
        self.around.rooms.clone_from(rooms);
        self.around.tracks_per_participant = tracks_per_participant;
    }

    fn next_id(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    fn sid(&mut self, prefix: &str) -> String {
        format!("{prefix}{}", self.secrets.id_chars(12))
    }

    /// A source, and one for its retransmissions.
    fn ssrcs(&mut self) -> (Ssrc, Ssrc) {
        let two = self.secrets.u64();
        (Ssrc(two as u32 | 1), Ssrc((two >> 32) as u32 & !1))
    }

    fn mail(&self, worker: WorkerId, command: Command) {
        (self.around.mail)(worker, command);
    }

    // ---- look-ups -------------------------------------------------------------------------------------------------

    fn participant(&mut self, session: SessionId) -> Option<&mut Participant> {
        let room = self.rooms.get_mut(self.places.get(&session)?)?;
        let is_it = |p: &Participant| p.sessions().any(|s| s == session);
        let seat = self.seats.entry(session).or_default();
        if !room.participants.get(*seat).is_some_and(is_it) {
            *seat = room.participants.iter().position(is_it)?;
        }
        room.participants.get_mut(*seat)
    }

    fn room_of(&mut self, session: SessionId) -> Option<&mut Room> {
        self.rooms.get_mut(self.places.get(&session)?)
    }

    /// Puts into the gauges who is here: whoever reads them pays for it, not whoever comes.
    pub fn count(&self) {
        let gauges = &self.around.gauges;
        let participants = || self.rooms.values().flat_map(|r| &r.participants);
        gauges.rooms.store(self.rooms.len() as i64, Relaxed);
        gauges.participants.store(participants().count() as i64, Relaxed);
        gauges.tracks.store(participants().map(|p| p.info.tracks.len() as i64).sum(), Relaxed);
    }

    // ---- telling --------------------------------------------------------------------------------------------------

    /// Puts a message into a client's queue; a full queue cuts the client off.
    fn tell(&mut self, session: SessionId, message: Down) {
        let Some(p) = self.participant(session) else { return };
        if let Some(signal) = &p.signal
            && let Err(mpsc::error::TrySendError::Full(_)) = signal.try_send(Box::new(message))
        {
            tracing::warn!(session = session.0, "a client does not read its signalling; its connection is closed");
            p.signal = None;
            p.signal_lost_at = Some(mono());
        }
    }

    /// Tells everybody in a room but `except`.
    fn broadcast(&mut self, room: &str, except: SessionId, message: &Down) {
        let Some(room) = self.rooms.get(room) else { return };
        let sessions: Vec<SessionId> = room.participants.iter().map(|p| p.session).filter(|s| *s != except).collect();
        for session in sessions {
            self.tell(session, message.clone());
        }
    }

    /// Everybody visible in a room but `except`.
    fn others(&self, room: &str, except: SessionId) -> Vec<proto::ParticipantInfo> {
        let visible = |p: &&Participant| p.session != except && !p.is_hidden();
        self.rooms.get(room).map(|r| r.participants.iter().filter(visible).map(|p| p.info.clone()).collect()).unwrap_or_default()
    }

    /// Tells the others (and, if asked, the participant itself) what it is like now.
    fn announce(&mut self, session: SessionId, itself_too: bool) {
        let Some(p) = self.participant(session) else { return };
        p.info.version += 1;
        let (key, info, is_hidden) = (p.session, p.info.clone(), p.is_hidden());
        if itself_too {
            self.tell(key, Down::Update(proto::ParticipantUpdate { participants: vec![info.clone()] }));
        }
        if !is_hidden {
            self.spread_news(key, info);
        }
    }

    /// Tells the others about one of them: at once in a small room and when it publishes, else with the next batch.
    fn spread_news(&mut self, about: SessionId, info: proto::ParticipantInfo) {
        let Some(name) = self.places.get(&about).cloned() else { return };
        let Some(room) = self.rooms.get_mut(&name) else { return };
        room.late_news.remove(&info.sid);
        let is_gone = info.state == proto::participant_info::State::Disconnected as i32;
        if room.participants.len() >= lifetime::BIG_ROOM && !info.is_publisher && !is_gone {
            room.late_news.insert(info.sid.clone(), info);
            room.late_news_due.get_or_insert_with(|| mono() + lifetime::LATE_NEWS_INTERVAL);
            return;
        }
        self.broadcast(&name, about, &Down::Update(proto::ParticipantUpdate { participants: vec![info] }));
    }

    /// Answers a request that names itself by an id, or that was refused.
    fn respond(
        &mut self,
        session: SessionId,
        request_id: u32,
        reason: proto::request_response::Reason,
        message: &str,
        request: proto::request_response::Request,
    ) {
        let answer = proto::RequestResponse { request_id, reason: reason as i32, message: message.into(), request: Some(request) };
        self.tell(session, Down::RequestResponse(answer));
    }

    /// Tells the webhooks.
    fn event(&self, event: &str, room: &str, participant: Option<&proto::ParticipantInfo>, track: Option<&proto::TrackInfo>) {
        let Some(info) = self.rooms.get(room).map(room_info) else { return };
        self.around.events.push(event, info, participant.cloned(), track.cloned());
    }

    // ---- reports --------------------------------------------------------------------------------------------------

    /// What the data plane tells.
    pub fn report(&mut self, report: Report) {
        match report {
            Report::Live { session, profile } => self.went_live(session, profile),
            Report::Path { session, kind } => {
                self.way_found(session, kind);
                if let Some(p) = self.participant(session) {
                    p.path = Some(kind);
                    let before = p.info.attributes.insert(PATH_ATTRIBUTE.into(), kind.name().into());
                    tracing::info!(session = session.0, path = kind.name(), "media path");
                    if before.as_deref() != Some(kind.name()) {
                        self.announce(session, true);
                        self.note_of(session, "path", |_, entry| entry);
                    }
                }
            }
            Report::Silent { session, was_busy } => self.fell_silent(session, was_busy),
            Report::Unreachable { session } => self.drop_out(session, proto::DisconnectReason::ConnectionTimeout),
            Report::Ended { session, end, detail } => self.media_ended(session, end, &detail),
            Report::LastMessage { session, sequence } => self.resumed(session, sequence),
            Report::Speakers { room, changes } => self.speakers_changed(room, &changes),
            Report::StreamState { session, track, is_paused } => self.stream_state(session, track, is_paused),
            Report::Quality { session, sample } => self.sampled(session, sample),
            Report::Layer { session, track, layer } => {
                let subscriptions = self.participant(session).map(|p| p.subscriptions.iter_mut());
                subscriptions.into_iter().flatten().filter(|s| s.track == track).for_each(|s| s.layer = Some(layer));
            }
            Report::Closed { session, rest } => self.closed(session, &rest),
            Report::Data { session, bytes } => self.data_for_server(session, &bytes),
        }
    }

    fn speakers_changed(&mut self, room: RoomId, changes: &[crate::room::speaker::Change]) {
        let Some((name, room)) = self.rooms.iter().find(|(_, r)| r.id == room) else { return };
        let info = |c: &crate::room::speaker::Change| {
            let p = room.participants.iter().find(|p| p.session == c.session && !p.is_hidden())?;
            Some(proto::SpeakerInfo { sid: p.sid.clone(), level: c.level, active: c.active })
        };
        let speakers: Vec<proto::SpeakerInfo> = changes.iter().filter_map(info).collect();
        let name = name.clone();
        if !speakers.is_empty() {
            self.broadcast(&name, SessionId(0), &Down::SpeakersChanged(proto::SpeakersChanged { speakers }));
        }
    }
}

fn room_info(room: &Room) -> proto::Room {
    let visible = room.participants.iter().filter(|p| !p.is_hidden());
    let publishers = room.participants.iter().filter(|p| p.info.is_publisher).count();
    #[allow(deprecated, reason = "tokens and clients of some age say it here")]
    let is_recorded = room.participants.iter().any(|p| p.info.permission.as_ref().is_some_and(|p| p.recorder));
    proto::Room {
        num_participants: visible.count() as u32,
        num_publishers: publishers as u32,
        active_recording: is_recorded,
        ..room.info.clone()
    }
}

#[cfg(test)]
mod tests;
