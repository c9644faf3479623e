//! Rooms, participants, tracks and subscriptions: what everybody in a room knows, and what each is told.
//!
//! Everything here runs under one lock, without awaiting. Towards the data plane go [`Command`]s, towards each client
//! signal messages into its bounded queue; a client that does not read is cut off and may resume.

mod placement;
mod subscribing;

use super::auth::{Claims, Keys};
use super::metrics::Gauges;
use super::tracks::{
    assign_subscriptions, bind_published, is_reserved, is_too_long, kind_named, publish_codecs, source_named, subscribe, track_info,
    uses_of, want,
};
use crate::base::id::{RoomId, SessionId, Ssrc, TrackId, WorkerId};
use crate::crypto::SecretRng;
use crate::engine::ice::Credentials;
use crate::engine::turn_auth::{MINTED_LIFETIME_S, Secrets};
use crate::session::End;
use crate::session::negotiate::{self, Candidates, Local};
use crate::shard::mail::{Command, Report};
use crate::shard::table;
use crate::wire::rtp::Codec;
use crate::wire::sdp::{Kind, Offer, SdpError};
use livekit_protocol as proto;
use livekit_protocol::signal_response::Message as Down;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;

/// Messages that wait for a client before it counts as too slow.
pub const SIGNAL_QUEUE: usize = 512;
/// How long a participant without a signalling connection stays.
const SIGNAL_LOST_FOR: Duration = Duration::from_secs(15);
/// How often a client gets a fresh token, and how long that is good.
const TOKEN_INTERVAL: Duration = Duration::from_secs(300);
const TOKEN_LIFETIME_S: u64 = 600;
pub const PING_INTERVAL_S: i32 = 5;
pub const PING_TIMEOUT_S: i32 = 15;
/// Attribute of a participant that tells which way its media takes: `udp`, `tcp`, `relay/udp`, `relay/tcp`, `relay/tls`.
const PATH_ATTRIBUTE: &str = "postern.path";
/// Protocol of the room service that this server speaks.
const PROTOCOL: i32 = 16;

/// Where commands for a worker go.
pub type Mail = Arc<dyn Fn(WorkerId, Command) + Send + Sync>;
/// What a client's connection writes.
pub type Signal = mpsc::Sender<Down>;

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
    #[error("name, metadata or attributes are too long")]
    TooLong,
    #[error("the offer cannot be answered: {0}")]
    Offer(#[from] SdpError),
}

pub(super) struct Track {
    pub(super) id: TrackId,
    pub(super) cid: String,
    pub(super) info: proto::TrackInfo,
    /// Section that carries it; `None` until an offer has it.
    pub(super) mid: Option<String>,
}

pub(super) struct Subscription {
    pub(super) track: TrackId,
    pub(super) sid: String,
    pub(super) publisher: SessionId,
    pub(super) publisher_sid: String,
    /// The worker that owns the publisher.
    pub(super) home: WorkerId,
    pub(super) kind: Kind,
    pub(super) codec: Option<Codec>,
    /// Its publisher allows redundancy.
    pub(super) redundancy: bool,
    pub(super) ssrc: Ssrc,
    pub(super) rtx: Ssrc,
    pub(super) mid: Option<String>,
    pub(super) enabled: bool,
    pub(super) layer_max: u8,
    pub(super) temporal_max: u8,
}

pub(super) struct Participant {
    pub(super) worker: WorkerId,
    pub(super) sid: String,
    pub(super) session: SessionId,
    pub(super) claims: Claims,
    pub(super) info: proto::ParticipantInfo,
    pub(super) tracks: Vec<Track>,
    pub(super) subscriptions: Vec<Subscription>,
    pub(super) auto_subscribe: bool,
    pub(super) signal: Option<Signal>,
    pub(super) signal_lost_at: Option<Instant>,
    /// A client that is back, and the name by which it reached us, until its worker has told what came of its messages.
    pub(super) resuming: Option<(Signal, String)>,
    pub(super) token_due: Instant,
    pub(super) credentials: Credentials,
    pub(super) remote_ufrag: String,
    pub(super) answers: u64,
    /// Sections asked for since the last offer: audio, video.
    pub(super) asked: (u32, u32),
    /// Free sections of the last offer: audio, video.
    pub(super) free_sections: (u32, u32),
    /// Those of the free video sections that can carry AV1 too.
    pub(super) free_described: u32,
    /// How often a section for AV1 was asked for in vain: a client that has none gets the track in any.
    pub(super) described_asked: u8,
    pub(super) has_offered: bool,
}

struct Room {
    id: RoomId,
    info: proto::Room,
    participants: Vec<Participant>,
    /// Who left lately: a client whose signalling was away is told on its return.
    departed: Vec<(Instant, proto::ParticipantInfo)>,
    /// Somebody came or went since the last `RoomUpdate`.
    has_changed: bool,
}

pub struct Rooms {
    around: Surroundings,
    rooms: BTreeMap<String, Room>,
    /// Room of each session.
    places: HashMap<SessionId, String>,
    made: u64,
    secrets: SecretRng,
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
        Self { around, rooms: BTreeMap::new(), places: HashMap::new(), made: 0, secrets: SecretRng::system() }
    }

    fn next_id(&mut self) -> u64 {
        self.made += 1;
        self.made
    }

    fn sid(&mut self, prefix: &str) -> String {
        format!("{prefix}{}", self.secrets.id_chars(12))
    }

    pub fn may_join(&self, claims: &Claims) -> bool {
        self.around.rooms.auto_create || claims.video.room_create || self.rooms.contains_key(&claims.video.room)
    }

    // ---- joining and leaving --------------------------------------------------------------------------------------

    /// Lets a participant in: everything it is told first is in its queue when this returns.
    pub fn join(&mut self, claims: Claims, request: proto::JoinRequest, host: &str, signal: Signal) -> Result<SessionId, JoinError> {
        let name = claims.video.room.clone();
        if !self.may_join(&claims) {
            return Err(JoinError::RoomMissing);
        }
        // An offer that cannot be answered is refused while there is still an HTTP status to say so.
        let offer = request.publisher_offer.clone();
        if let Some(offer) = &offer {
            Offer::parse(&offer.sdp)?;
        }
        let grants = &claims.video;
        let permission = proto::ParticipantPermission {
            can_subscribe: grants.can_subscribe.unwrap_or(true),
            can_publish: grants.can_publish.unwrap_or(true),
            can_publish_data: grants.can_publish_data.unwrap_or(true),
            can_publish_sources: grants.can_publish_sources.iter().filter_map(|s| source_named(s)).map(|s| s as i32).collect(),
            hidden: grants.hidden,
            can_update_metadata: grants.can_update_own_metadata.unwrap_or(false),
            ..Default::default()
        };
        let client = request.client_info.unwrap_or_default();
        // What the token says is signed; what the client adds counts only if it may change itself.
        let mut attributes = claims.attributes.clone();
        let mut metadata = claims.metadata.clone();
        if permission.can_update_metadata {
            attributes.extend(request.participant_attributes.into_iter().filter(|(key, _)| !is_reserved(key)));
            if metadata.is_empty() {
                metadata = request.metadata;
            }
        }
        if is_too_long(&claims.name, &metadata, &attributes) {
            return Err(JoinError::TooLong);
        }
        let identity = claims.identity().to_owned();
        let participants_max = self.around.rooms.participants_max as usize;
        if let Some(room) = self.rooms.get(&name) {
            let others = room.participants.iter().filter(|p| p.info.identity != identity).count();
            if others >= participants_max {
                return Err(JoinError::RoomFull);
            }
            if let Some(old) = room.participants.iter().find(|p| p.info.identity == identity).map(|p| p.session) {
                self.expel(old, proto::DisconnectReason::DuplicateIdentity, proto::leave_request::Action::Disconnect);
            }
        }
        let worker = self.worker_for(&name);
        let (room_id, room_sid) = (RoomId(self.next_id()), self.sid("RM_"));
        let now = wall();
        let room = self.rooms.entry(name.clone()).or_insert_with(|| Room {
            id: room_id,
            info: proto::Room {
                sid: room_sid,
                name: name.clone(),
                creation_time: now.as_secs() as i64,
                creation_time_ms: now.as_millis() as i64,
                ..Default::default()
            },
            participants: Vec::new(),
            departed: Vec::new(),
            has_changed: false,
        });
        let room_id = room.id;
        let session = SessionId(self.next_id());
        let sid = self.sid("PA_");
        let credentials = self.credentials(worker);
        let info = proto::ParticipantInfo {
            sid: sid.clone(),
            identity: identity.clone(),
            name: claims.name.clone(),
            metadata,
            attributes,
            state: proto::participant_info::State::Joined as i32,
            joined_at: now.as_secs() as i64,
            joined_at_ms: now.as_millis() as i64,
            kind: kind_named(&claims.kind) as i32,
            version: 1,
            client_protocol: client.client_protocol,
            capabilities: client.capabilities,
            permission: Some(permission.clone()),
            ..Default::default()
        };
        let auto_subscribe = request.connection_settings.as_ref().is_none_or(|s| s.auto_subscribe);
        (self.around.mail)(
            worker,
            Command::Open {
                session,
                room: room_id,
                credentials: credentials.clone(),
                identity,
                sid: sid.clone(),
                can_publish_data: permission.can_publish_data,
                can_subscribe: permission.can_subscribe,
            },
        );
        let join = proto::JoinResponse {
            // Itself included, though it takes its seat only below.
            room: self
                .rooms
                .get(&name)
                .map(room_info)
                .map(|r| proto::Room { num_participants: r.num_participants + u32::from(!permission.hidden), ..r }),
            participant: Some(info.clone()),
            other_participants: self.others(&name, session),
            server_version: env!("CARGO_PKG_VERSION").into(),
            ice_servers: self.ice_servers(host, &sid, worker),
            subscriber_primary: false,
            ping_timeout: PING_TIMEOUT_S,
            ping_interval: PING_INTERVAL_S,
            server_info: Some(self.server_info()),
            enabled_publish_codecs: publish_codecs(),
            fast_publish: permission.can_publish,
            ..Default::default()
        };
        let _ = signal.try_send(Down::Join(join));
        let participant = Participant {
            sid,
            session,
            worker,
            claims,
            info,
            tracks: Vec::new(),
            subscriptions: Vec::new(),
            auto_subscribe,
            signal: Some(signal),
            signal_lost_at: None,
            resuming: None,
            token_due: mono(),
            credentials,
            remote_ufrag: String::new(),
            answers: 0,
            asked: (0, 0),
            free_sections: (0, 0),
            free_described: 0,
            described_asked: 0,
            has_offered: false,
        };
        if let Some(room) = self.rooms.get_mut(&name) {
            room.participants.push(participant);
            room.has_changed = true;
        }
        self.places.insert(session, name.clone());
        self.spread(&name);
        self.count();
        self.refresh_token(session);
        self.announce(session, false);
        self.subscribe_to_all(session);
        for add in request.add_track_requests {
            self.add_track(session, add);
        }
        if let Some(offer) = offer {
            self.offer(session, &offer);
        }
        tracing::info!(room = %name, session = session.0, worker = worker.0, "a participant joined");
        Ok(session)
    }

    fn credentials(&mut self, worker: WorkerId) -> Credentials {
        let ufrag = table::ufrag(worker, &self.secrets.ice_chars(10));
        Credentials { ufrag, pwd: self.secrets.ice_chars(24) }
    }

    fn server_info(&self) -> proto::ServerInfo {
        proto::ServerInfo {
            version: env!("CARGO_PKG_VERSION").into(),
            protocol: PROTOCOL,
            node_id: self.around.node.clone(),
            ..Default::default()
        }
    }

    /// Our own STUN and TURN. Disjoint from the media candidates: Chromium swallows media that comes from a TURN URL's port.
    fn ice_servers(&self, host: &str, participant_sid: &str, worker: WorkerId) -> Vec<proto::IceServer> {
        let Ports { turn, edge } = self.around.ports;
        let expires = wall().as_secs() + MINTED_LIFETIME_S;
        let (username, credential) = self.around.turn.mint(participant_sid, worker.0, expires);
        let mut urls = Vec::new();
        if let Some(port) = turn {
            urls.push(format!("turn:{host}:{port}?transport=udp"));
        }
        urls.push(format!("turn:{host}:{edge}?transport=tcp"));
        urls.push(format!("turns:{host}:{edge}?transport=tcp"));
        let relay = proto::IceServer { urls, username, credential };
        let stun = turn.map(|port| proto::IceServer { urls: vec![format!("stun:{host}:{port}")], ..Default::default() });
        stun.into_iter().chain([relay]).collect()
    }

    /// A new signalling connection for a participant that is still here; `None` when it has to join anew.
    pub fn resume(&mut self, claims: &Claims, participant_sid: &str, host: &str, signal: Signal) -> Option<SessionId> {
        let room = self.rooms.get_mut(&claims.video.room)?;
        let participant = room.participants.iter_mut().find(|p| p.sid == participant_sid && p.info.identity == claims.identity())?;
        participant.resuming = Some((signal, host.to_owned()));
        let (session, worker) = (participant.session, participant.worker);
        (self.around.mail)(worker, Command::TellLastMessage { session });
        Some(session)
    }

    /// The worker has told which reliable message came last: the client that resumes goes on behind it.
    fn resumed(&mut self, session: SessionId, last_message_seq: u32) {
        let Some(name) = self.places.get(&session).cloned() else { return };
        let Some(participant) = self.participant(session) else { return };
        let Some((signal, host)) = participant.resuming.take() else { return };
        participant.signal = Some(signal);
        participant.signal_lost_at = None;
        participant.asked = (0, 0);
        let (sid, worker) = (participant.sid.clone(), participant.worker);
        let reconnect = proto::ReconnectResponse {
            ice_servers: self.ice_servers(&host, &sid, worker),
            server_info: Some(self.server_info()),
            last_message_seq,
            ..Default::default()
        };
        self.tell(session, Down::Reconnect(reconnect));
        let mut everybody = self.others(&name, SessionId(0));
        if let Some(room) = self.rooms.get(&name) {
            everybody.extend(room.departed.iter().map(|(_, info)| info.clone()));
        }
        self.tell(session, Down::Update(proto::ParticipantUpdate { participants: everybody }));
        let room = self.rooms.get(&name).map(room_info);
        self.tell(session, Down::RoomUpdate(proto::RoomUpdate { room }));
        self.refresh_token(session);
    }

    /// The signalling connection is gone; media goes on for a while.
    pub fn signal_lost(&mut self, session: SessionId, signal: &Signal) {
        let Some(p) = self.participant(session) else { return };
        p.resuming.take_if(|(s, _)| s.same_channel(signal));
        if p.signal.as_ref().is_some_and(|s| s.same_channel(signal)) {
            p.signal = None;
            p.signal_lost_at = Some(mono());
        }
    }

    /// Takes a participant out and tells it why, as far as it can be told.
    pub fn expel(&mut self, session: SessionId, reason: proto::DisconnectReason, action: proto::leave_request::Action) {
        let leave = proto::LeaveRequest {
            can_reconnect: action != proto::leave_request::Action::Disconnect,
            reason: reason as i32,
            action: action as i32,
            ..Default::default()
        };
        // Whoever is just coming back hears it too.
        if let Some(p) = self.participant(session)
            && let Some((signal, _)) = p.resuming.take()
        {
            p.signal = Some(signal);
        }
        self.tell(session, Down::Leave(leave));
        self.remove(session, reason);
    }

    /// Takes a participant out and tells the others.
    pub fn remove(&mut self, session: SessionId, reason: proto::DisconnectReason) {
        let Some(name) = self.places.remove(&session) else { return };
        let Some(room) = self.rooms.get_mut(&name) else { return };
        let Some(at) = room.participants.iter().position(|p| p.session == session) else { return };
        let mut gone = room.participants.remove(at);
        let room_id = room.id;
        (self.around.mail)(gone.worker, Command::Close { session });
        let tracks: Vec<TrackId> = gone.tracks.iter().map(|t| t.id).collect();
        for other in &mut room.participants {
            other.subscriptions.retain(|s| !tracks.contains(&s.track));
        }
        for worker in self.workers_of(&name).into_iter().filter(|w| *w != gone.worker) {
            for track in &tracks {
                (self.around.mail)(worker, Command::Unpublish { room: room_id, track: *track });
            }
        }
        self.spread(&name);
        gone.info.state = proto::participant_info::State::Disconnected as i32;
        gone.info.disconnect_reason = reason as i32;
        gone.info.tracks.clear();
        gone.info.version += 1;
        if !gone.info.permission.as_ref().is_some_and(|p| p.hidden) {
            if let Some(room) = self.rooms.get_mut(&name) {
                room.departed.retain(|(_, info)| info.sid != gone.info.sid);
                room.departed.push((mono(), gone.info.clone()));
                room.has_changed = true;
            }
            self.broadcast(&name, session, &Down::Update(proto::ParticipantUpdate { participants: vec![gone.info] }));
        }
        if self.rooms.get(&name).is_some_and(|r| r.participants.is_empty()) {
            self.rooms.remove(&name);
        }
        self.count();
        tracing::info!(room = %name, session = session.0, ?reason, "a participant left");
    }

    /// What time brings: participants whose signalling did not come back, tokens to renew.
    pub fn tick(&mut self) {
        let now = mono();
        let mut gone = Vec::new();
        let mut renew = Vec::new();
        let mut changed = Vec::new();
        for (name, room) in &mut self.rooms {
            room.departed.retain(|(at, _)| now.duration_since(*at) < 2 * SIGNAL_LOST_FOR);
            if std::mem::take(&mut room.has_changed) {
                changed.push((name.clone(), room_info(room)));
            }
        }
        for (name, info) in changed {
            self.broadcast(&name, SessionId(0), &Down::RoomUpdate(proto::RoomUpdate { room: Some(info) }));
        }
        for p in self.rooms.values().flat_map(|r| &r.participants) {
            if p.resuming.is_none() && p.signal_lost_at.is_some_and(|at| now.duration_since(at) >= SIGNAL_LOST_FOR) {
                gone.push(p.session);
            } else if p.token_due <= now {
                renew.push(p.session);
            }
        }
        for session in gone {
            self.remove(session, proto::DisconnectReason::SignalClose);
        }
        for session in renew {
            self.refresh_token(session);
        }
    }

    /// Everybody out: the server stops.
    pub fn close_all(&mut self) {
        let all: Vec<SessionId> = self.places.keys().copied().collect();
        for session in all {
            self.expel(session, proto::DisconnectReason::ServerShutdown, proto::leave_request::Action::Reconnect);
        }
    }

    fn refresh_token(&mut self, session: SessionId) {
        let now = wall().as_secs();
        let keys = self.around.keys.clone();
        let Some(p) = self.participant(session) else { return };
        p.token_due = mono() + TOKEN_INTERVAL;
        let mut claims = p.claims.clone();
        claims.exp = claims.exp.max(now + TOKEN_LIFETIME_S);
        claims.nbf = None;
        if let Some(token) = keys.sign(&claims) {
            self.tell(session, Down::RefreshToken(token));
        }
    }

    // ---- look-ups and telling -------------------------------------------------------------------------------------

    fn participant(&mut self, session: SessionId) -> Option<&mut Participant> {
        let room = self.rooms.get_mut(self.places.get(&session)?)?;
        room.participants.iter_mut().find(|p| p.session == session)
    }

    fn count(&self) {
        let gauges = &self.around.gauges;
        gauges.rooms.store(self.rooms.len() as i64, Relaxed);
        gauges.participants.store(self.places.len() as i64, Relaxed);
        let tracks: usize = self.rooms.values().flat_map(|r| &r.participants).map(|p| p.info.tracks.len()).sum();
        gauges.tracks.store(tracks as i64, Relaxed);
    }

    /// Puts a message into a client's queue; a full queue cuts the client off.
    fn tell(&mut self, session: SessionId, message: Down) {
        let Some(p) = self.participant(session) else { return };
        if let Some(signal) = &p.signal
            && let Err(mpsc::error::TrySendError::Full(_)) = signal.try_send(message)
        {
            tracing::warn!(session = session.0, "a client does not read its signalling; its connection is closed");
            p.signal = None;
            p.signal_lost_at = Some(mono());
        }
    }

    /// Tells everybody in a room but `except`.
    fn broadcast(&mut self, room: &str, except: SessionId, message: &Down) {
        let sessions: Vec<SessionId> =
            self.rooms.get(room).map(|r| r.participants.iter().map(|p| p.session).filter(|s| *s != except).collect()).unwrap_or_default();
        for session in sessions {
            self.tell(session, message.clone());
        }
    }

    /// Everybody visible in a room but `except`.
    fn others(&self, room: &str, except: SessionId) -> Vec<proto::ParticipantInfo> {
        let visible = |p: &&Participant| p.session != except && !p.info.permission.as_ref().is_some_and(|p| p.hidden);
        self.rooms.get(room).map(|r| r.participants.iter().filter(visible).map(|p| p.info.clone()).collect()).unwrap_or_default()
    }

    /// Tells the others (and, if asked, the participant itself) what it is like now.
    fn announce(&mut self, session: SessionId, itself_too: bool) {
        let Some(p) = self.participant(session) else { return };
        p.info.version += 1;
        let info = p.info.clone();
        let Some(room) = self.places.get(&session).cloned() else { return };
        let is_hidden = info.permission.as_ref().is_some_and(|p| p.hidden);
        let update = Down::Update(proto::ParticipantUpdate { participants: vec![info] });
        if !is_hidden {
            self.broadcast(&room, session, &update);
        }
        if itself_too {
            self.tell(session, update);
        }
    }

    // ---- publishing -----------------------------------------------------------------------------------------------

    /// `AddTrackRequest`: the track gets its sid; it is published once an offer carries it.
    pub fn add_track(&mut self, session: SessionId, request: proto::AddTrackRequest) {
        let tracks_max = self.around.tracks_per_participant;
        let (id, random) = (TrackId(self.next_id()), self.secrets.id_chars(12));
        let Some(p) = self.participant(session) else { return };
        let refuse = |reason: proto::request_response::Reason, message: &str| {
            Down::RequestResponse(proto::RequestResponse {
                reason: reason as i32,
                message: message.into(),
                request: Some(proto::request_response::Request::AddTrack(request.clone())),
                ..Default::default()
            })
        };
        let permission = p.info.permission.clone().unwrap_or_default();
        // Nobody could show what comes from somebody that is not there.
        let may = if permission.hidden {
            false
        } else if permission.can_publish_sources.is_empty() {
            permission.can_publish
        } else {
            permission.can_publish_sources.contains(&request.source)
        };
        if !may {
            let refusal = refuse(proto::request_response::Reason::NotAllowed, "the token does not allow publishing this source");
            return self.tell(session, refusal);
        }
        if p.tracks.iter().any(|t| t.mid.is_none() && t.cid == request.cid) {
            let refusal = refuse(proto::request_response::Reason::Queued, "this cid is being published already");
            return self.tell(session, refusal);
        }
        if p.tracks.len() >= tracks_max {
            let refusal = refuse(proto::request_response::Reason::LimitExceeded, "limits.tracks_per_participant is reached");
            return self.tell(session, refusal);
        }
        let info = track_info(&request, random);
        p.tracks.push(Track { id, cid: request.cid.clone(), info: info.clone(), mid: None });
        self.tell(session, Down::TrackPublished(proto::TrackPublishedResponse { cid: request.cid, track: Some(info) }));
    }

    pub fn mute(&mut self, session: SessionId, request: &proto::MuteTrackRequest) {
        let Some(p) = self.participant(session) else { return };
        let Some(track) = p.tracks.iter_mut().find(|t| t.info.sid == request.sid) else { return };
        track.info.muted = request.muted;
        if let Some(published) = p.info.tracks.iter_mut().find(|t| t.sid == request.sid) {
            published.muted = request.muted;
            self.announce(session, true);
        }
    }

    pub fn update_metadata(&mut self, session: SessionId, request: proto::UpdateParticipantMetadata) {
        let Some(p) = self.participant(session) else { return };
        let may = p.info.permission.as_ref().is_some_and(|p| p.can_update_metadata);
        let mut after = p.info.clone();
        if !request.metadata.is_empty() {
            after.metadata.clone_from(&request.metadata);
        }
        if !request.name.is_empty() {
            after.name.clone_from(&request.name);
        }
        for (key, value) in request.attributes.iter().filter(|(key, _)| !is_reserved(key)) {
            if value.is_empty() {
                after.attributes.remove(key);
            } else {
                after.attributes.insert(key.clone(), value.clone());
            }
        }
        use proto::request_response::Reason;
        let (reason, message) = if !may {
            (Reason::NotAllowed, "the token does not allow changing one's own metadata")
        } else if is_too_long(&after.name, &after.metadata, &after.attributes) {
            (Reason::LimitExceeded, "name, metadata or attributes are too long")
        } else {
            p.info = after;
            self.announce(session, true);
            (Reason::Ok, "")
        };
        let answer = proto::RequestResponse {
            request_id: request.request_id,
            reason: reason as i32,
            message: message.into(),
            request: Some(proto::request_response::Request::UpdateMetadata(request)),
        };
        self.tell(session, Down::RequestResponse(answer));
    }

    // ---- negotiation ----------------------------------------------------------------------------------------------

    /// Answers an offer: binds what is published, assigns what is subscribed, tells the data plane.
    pub fn offer(&mut self, session: SessionId, description: &proto::SessionDescription) {
        let offer = match Offer::parse(&description.sdp) {
            Ok(offer) => offer,
            Err(error) => {
                tracing::warn!(session = session.0, %error, "an offer cannot be answered");
                return self.expel(session, proto::DisconnectReason::MediaFailure, proto::leave_request::Action::Disconnect);
            }
        };
        let Some(room) = self.places.get(&session).and_then(|name| self.rooms.get(name)) else { return };
        let room_id = room.id;
        let others = self.workers_of(self.places.get(&session).map_or("", String::as_str));
        let Some(worker) = self.participant(session).map(|p| p.worker) else { return };
        let fresh = self.credentials(worker);
        let Some(p) = self.participant(session) else { return };
        if !p.remote_ufrag.is_empty() && p.remote_ufrag != offer.ufrag {
            p.credentials = fresh;
        }
        p.remote_ufrag.clone_from(&offer.ufrag);
        p.has_offered = true;
        p.asked = (0, 0);
        p.answers += 1;
        let (published, unpublished) = bind_published(p, &offer);
        let assigned = assign_subscriptions(p, &offer);
        let uses = uses_of(p, &offer);
        let mid_to_track_id = p.subscriptions.iter().filter_map(|s| Some((s.mid.clone()?, s.sid.clone()))).collect();
        let (credentials, answers) = (p.credentials.clone(), p.answers);
        let subscribed: Vec<(Command, Command)> = p
            .subscriptions
            .iter()
            .filter(|s| assigned.contains(&s.track))
            .map(|s| (subscribe(room_id, session, s), want(room_id, session, s)))
            .collect();
        let local = Local {
            credentials: &credentials,
            fingerprint: &self.around.fingerprint,
            candidates: &self.around.candidates,
            session_id: session.0,
            version: answers,
        };
        let (sdp, plan) = negotiate::answer(&offer, &local, &uses);
        let mail = Arc::clone(&self.around.mail);
        for (track, worker) in unpublished.iter().flat_map(|t| others.iter().map(move |w| (t, w))) {
            mail(*worker, Command::Unpublish { room: room_id, track: *track });
        }
        mail(worker, Command::Apply { session, plan: Box::new(plan) });
        for (track, is_video) in &published {
            mail(worker, Command::Publish { room: room_id, session, track: *track, is_video: *is_video });
        }
        for (subscribe, want) in subscribed {
            mail(worker, subscribe);
            mail(worker, want);
        }
        let answer = proto::SessionDescription { r#type: "answer".into(), sdp, id: description.id, mid_to_track_id };
        self.tell(session, Down::Answer(answer));
        if !published.is_empty() || !unpublished.is_empty() {
            self.count();
            self.announce(session, true);
            self.tracks_changed(session, &unpublished);
        }
        self.ask_for_sections(session);
    }

    /// The others take up what a publisher offers now, and drop what it took back.
    fn tracks_changed(&mut self, publisher: SessionId, unpublished: &[TrackId]) {
        let Some(room) = self.places.get(&publisher).and_then(|name| self.rooms.get_mut(name)) else { return };
        let mut others = Vec::new();
        for p in room.participants.iter_mut().filter(|p| p.session != publisher) {
            p.subscriptions.retain(|s| !unpublished.contains(&s.track));
            if p.auto_subscribe {
                others.push(p.session);
            }
        }
        let Some(me) = room.participants.iter().find(|p| p.session == publisher) else { return };
        let sids: Vec<String> = me.info.tracks.iter().map(|t| t.sid.clone()).collect();
        for session in others {
            for sid in &sids {
                self.subscribe(session, sid);
            }
            self.ask_for_sections(session);
        }
    }

    // ---- reports --------------------------------------------------------------------------------------------------

    pub fn report(&mut self, report: Report) {
        match report {
            Report::Live { session, profile } => {
                if let Some(p) = self.participant(session) {
                    p.info.state = proto::participant_info::State::Active as i32;
                    tracing::info!(session = session.0, srtp = profile.name(), "media is connected");
                    self.announce(session, true);
                }
            }
            Report::Path { session, kind } => {
                if let Some(p) = self.participant(session) {
                    p.info.attributes.insert(PATH_ATTRIBUTE.into(), kind.name().into());
                    tracing::info!(session = session.0, path = kind.name(), "media path");
                    self.announce(session, true);
                }
            }
            Report::Ended { session, end } => {
                use proto::leave_request::Action;
                let reason = match end {
                    End::ConsentLost => proto::DisconnectReason::ConnectionTimeout,
                    End::HandshakeFailed | End::FingerprintMismatch | End::DataStalled => proto::DisconnectReason::MediaFailure,
                    End::PeerClosed => proto::DisconnectReason::ClientInitiated,
                };
                tracing::info!(session = session.0, ?end, "media ended");
                self.expel(session, reason, Action::Reconnect);
            }
            Report::LastMessage { session, sequence } => self.resumed(session, sequence),
            Report::Speakers { room, changes } => {
                let Some((name, room)) = self.rooms.iter().find(|(_, r)| r.id == room) else { return };
                let speakers = changes
                    .iter()
                    .filter_map(|c| {
                        let p = room.participants.iter().find(|p| p.session == c.session)?;
                        Some(proto::SpeakerInfo { sid: p.sid.clone(), level: c.level, active: c.active })
                    })
                    .collect();
                let name = name.clone();
                self.broadcast(&name, SessionId(0), &Down::SpeakersChanged(proto::SpeakersChanged { speakers }));
            }
        }
    }
}

fn room_info(room: &Room) -> proto::Room {
    let visible = room.participants.iter().filter(|p| !p.info.permission.as_ref().is_some_and(|p| p.hidden));
    let publishers = room.participants.iter().filter(|p| p.info.is_publisher).count();
    proto::Room { num_participants: visible.count() as u32, num_publishers: publishers as u32, ..room.info.clone() }
}
