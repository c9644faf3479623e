//! Who comes, comes back, and goes.

use super::data::DataTrack;
use super::negotiating::Subscriber;
use super::quality::{Samples, Scores};
use super::{
    Dialogue, Down, JoinError, PING_INTERVAL_S, PING_TIMEOUT_S, PROTOCOL, Participant, Room, Rooms, SPOKEN_VERSION, Sections, Signal,
    Transport, mono, room_info, wall,
};
use crate::base::id::{RoomId, SessionId, TrackId, WorkerId};
use crate::control::audit::Audit;
use crate::control::auth::Claims;
use crate::control::tracks::{is_reserved, is_too_long, kind_named, publish_codecs, source_named};
use crate::control::webhook::Events;
use crate::engine::ice::Credentials;
use crate::engine::turn_auth::MINTED_LIFETIME_S;
use crate::session::negotiate::Playout;
use crate::shard::mail::{Command, PathKind};
use crate::shard::table;
use crate::wire::sdp::Description;
use livekit_protocol as proto;
use proto::leave_request::Action;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// How often a client gets a fresh token, and how long that is good.
const TOKEN_INTERVAL: Duration = Duration::from_secs(300);
const TOKEN_LIFETIME_S: u64 = 600;

/// How long nothing is published in a room before a server that drains sends everybody in it on: who joins anew publishes soon.
const IDLE_FOR: Duration = Duration::from_secs(5);
/// Abilities that a client may name; everybody is told them.
const CAPABILITIES_MAX: usize = 32;
/// What is kept of how a client describes itself, characters.
const PROGRAM_MAX: usize = 128;
/// Revocations that a room keeps.
const REVOKED_MAX: usize = 4_096;

/// One that wants to come in.
pub struct Arrival {
    pub claims: Claims,
    pub request: proto::JoinRequest,
    pub caller: Caller,
    /// It knows only two peer connections, the second one offered by us.
    pub is_dual: bool,
}

/// How somebody reached us: by which name, and from where.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    pub host: String,
    pub address: Option<IpAddr>,
}

impl Rooms {
    pub fn may_join(&self, claims: &Claims) -> bool {
        self.around.rooms.auto_create || claims.video.room_create || self.rooms.contains_key(&claims.video.room)
    }

    /// Lets a participant in: everything it is told first is in its queue when this returns.
    pub fn join(&mut self, arrival: Arrival, signal: Signal) -> Result<SessionId, JoinError> {
        let is_dual = arrival.is_dual;
        // An offer that cannot be answered is refused while there is still an HTTP status to say so.
        let offer = arrival.request.publisher_offer.clone();
        if let Some(offer) = &offer {
            Description::parse(&offer.sdp)?;
        }
        let (host, adds) = (arrival.caller.host.clone(), arrival.request.add_track_requests.clone());
        let session = self.seat(arrival, Dialogue::Signal, Some(signal))?;
        let name = self.places.get(&session).cloned().unwrap_or_default();
        let response = self.join_response(&name, session, &host);
        if let Some(response) = response {
            self.tell(session, Down::Join(response));
        }
        self.refresh_token(session);
        self.announce(session, false);
        self.subscribe_to_all(session);
        if is_dual {
            self.offer_tracks(session);
        }
        for add in adds {
            self.add_track(session, add);
        }
        if let Some(offer) = offer {
            self.offer(session, &offer);
        }
        Ok(session)
    }

    /// Gives a participant its place in the room; nobody is told yet.
    pub(super) fn seat(&mut self, arrival: Arrival, dialogue: Dialogue, signal: Option<Signal>) -> Result<SessionId, JoinError> {
        let Arrival { claims, request, is_dual, caller } = arrival;
        let name = claims.video.room.clone();
        if !self.may_join(&claims) {
            return Err(JoinError::RoomMissing);
        }
        if self.refuses_room(&name) {
            return Err(JoinError::Draining);
        }
        let permission = permission_of(&claims);
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
        if let Some(room) = self.rooms.get(&name) {
            if room.is_revoked(&identity, claims.nbf) {
                return Err(JoinError::Revoked);
            }
            let others = room.participants.iter().filter(|p| p.info.identity != identity).count();
            if others >= room.participants_max(self.around.rooms.participants_max) {
                return Err(JoinError::RoomFull);
            }
            if let Some(old) = room.participants.iter().find(|p| p.info.identity == identity).map(|p| p.session) {
                self.expel(old, proto::DisconnectReason::DuplicateIdentity, Action::Disconnect);
            }
            self.forget_absent(&name, &identity);
        }
        let room_id = self.room_for(&name, claims.room_config.as_ref());
        let worker = self.worker_for(&name);
        let now = wall();
        let sid = self.sid("PA_");
        let program = program(&client);
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
            capabilities: client.capabilities.into_iter().take(CAPABILITIES_MAX).collect(),
            permission: Some(permission.clone()),
            ..Default::default()
        };
        let first = self.transport(worker);
        let session = first.session;
        let subscriber = is_dual.then(|| Subscriber::new(self.transport(worker)));
        let open = |transport: &Transport, hears_data: bool, opens_channels: bool| Command::Open {
            session: transport.session,
            room: room_id,
            credentials: transport.credentials.clone(),
            identity: identity.clone(),
            sid: sid.clone(),
            can_publish_data: permission.can_publish_data,
            hears_data,
            opens_channels,
        };
        self.mail(worker, open(&first, !is_dual && dialogue == Dialogue::Signal, false));
        self.places.insert(session, name.clone());
        if let Some(second) = &subscriber {
            self.mail(worker, open(&second.transport, true, true));
            self.places.insert(second.transport.session, name.clone());
        }
        let participant = Participant {
            worker,
            sid,
            session,
            claims,
            info,
            tracks: Vec::new(),
            subscriptions: Vec::new(),
            // Firefox tells tracks apart by their streams.
            syncs_streams: !client.browser.eq_ignore_ascii_case("firefox"),
            auto_subscribe: request.connection_settings.as_ref().is_none_or(|s| s.auto_subscribe),
            dialogue,
            signal,
            signal_lost_at: None,
            resuming: None,
            token_due: mono(),
            joined_at: mono(),
            came_at: mono(),
            described_at: None,
            first,
            subscriber,
            sections: Sections::default(),
            listeners: None,
            one_shot: None,
            data_tracks: Vec::<DataTrack>::new(),
            path: None,
            silent: None,
            scores: Scores::default(),
            samples: Samples::default(),
            address: caller.address,
            client: program,
        };
        if let Some(room) = self.rooms.get_mut(&name) {
            room.participants.push(participant);
            (room.has_changed, room.was_joined, room.empty_since) = (true, true, None);
        }
        self.spread(&name);
        tracing::info!(room = %name, session = session.0, worker = worker.0, "a participant joined");
        self.note_joined(session);
        Ok(session)
    }

    /// The room of this name; made, if it is not there, as the token or the config say.
    pub(super) fn room_for(&mut self, name: &str, config: Option<&proto::RoomConfiguration>) -> RoomId {
        if let Some(room) = self.rooms.get(name) {
            return room.id;
        }
        let (id, sid, now) = (RoomId(self.next_id()), self.sid("RM_"), wall());
        let defaults = &self.around.rooms;
        let wish = |of: fn(&proto::RoomConfiguration) -> u32, default: u32| config.map(of).filter(|v| *v > 0).unwrap_or(default);
        let info = proto::Room {
            sid,
            name: name.to_owned(),
            empty_timeout: wish(|c| c.empty_timeout, defaults.empty_timeout_s),
            departure_timeout: wish(|c| c.departure_timeout, defaults.departure_timeout_s),
            max_participants: wish(|c| c.max_participants, 0),
            creation_time: now.as_secs() as i64,
            creation_time_ms: now.as_millis() as i64,
            enabled_codecs: publish_codecs(),
            metadata: config.map(|c| c.metadata.clone()).unwrap_or_default(),
            ..Default::default()
        };
        let room = Room {
            id,
            info,
            sync_streams: config.is_some_and(|c| c.sync_streams),
            playout: config.and_then(|c| Playout::from_millis(c.min_playout_delay, c.max_playout_delay)),
            participants: Vec::new(),
            absent: Vec::new(),
            departed: Vec::new(),
            late_news: BTreeMap::new(),
            late_news_due: None,
            has_changed: false,
            empty_since: Some(mono()),
            was_joined: false,
            nonces: VecDeque::new(),
            idle_since: None,
            revoked: HashMap::new(),
            unstable: HashMap::new(),
        };
        self.rooms.insert(name.to_owned(), room);
        self.event("room_started", name, None, None);
        self.note_room("room_started", name);
        id
    }

    fn transport(&mut self, worker: WorkerId) -> Transport {
        let session = SessionId(self.next_id());
        Transport { session, credentials: self.credentials(worker), remote_ufrag: String::new(), descriptions: 0 }
    }

    pub(super) fn credentials(&mut self, worker: WorkerId) -> Credentials {
        let ufrag = table::ufrag(worker, &self.secrets.ice_chars(10));
        Credentials { ufrag, pwd: self.secrets.ice_chars(24) }
    }

    fn join_response(&mut self, name: &str, session: SessionId, host: &str) -> Option<proto::JoinResponse> {
        let room = self.rooms.get(name).map(room_info);
        let other_participants = self.others(name, session);
        let ice_servers = self.ice_servers(host, session);
        let client_configuration = self.client_configuration(session);
        let server_info = self.server_info();
        let p = self.participant(session)?;
        let permission = p.info.permission.clone().unwrap_or_default();
        Some(proto::JoinResponse {
            room,
            participant: Some(p.info.clone()),
            other_participants,
            server_version: server_info.version.clone(),
            ice_servers,
            subscriber_primary: p.subscriber.is_some() && permission.can_subscribe,
            client_configuration,
            ping_timeout: PING_TIMEOUT_S,
            ping_interval: PING_INTERVAL_S,
            server_info: Some(server_info),
            enabled_publish_codecs: publish_codecs(),
            fast_publish: permission.can_publish,
            ..Default::default()
        })
    }

    fn server_info(&self) -> proto::ServerInfo {
        proto::ServerInfo {
            version: SPOKEN_VERSION.into(),
            debug_info: concat!("postern ", env!("CARGO_PKG_VERSION")).into(),
            protocol: PROTOCOL,
            node_id: self.around.node.clone(),
            ..Default::default()
        }
    }

    /// Our own STUN and TURN. Disjoint from the media candidates: Chromium swallows media that comes from a TURN URL's port.
    /// Ways that failed this participant are left out.
    pub(super) fn ice_servers(&mut self, host: &str, session: SessionId) -> Vec<proto::IceServer> {
        let least = self.least_way(session);
        let Some((sid, worker)) = self.participant(session).map(|p| (p.sid.clone(), p.worker)) else { return Vec::new() };
        let super::Ports { turn, edge } = self.around.ports;
        let expires = wall().as_secs() + MINTED_LIFETIME_S;
        let (username, credential) = self.around.turn.mint(&sid, worker.0, expires);
        let mut urls = Vec::new();
        if let Some(port) = turn.filter(|_| least == PathKind::Udp) {
            urls.push(format!("turn:{host}:{port}?transport=udp"));
        }
        if least != PathKind::RelayTls {
            urls.push(format!("turn:{host}:{edge}?transport=tcp"));
        }
        urls.push(format!("turns:{host}:{edge}?transport=tcp"));
        let relay = proto::IceServer { urls, username, credential };
        let stun = turn.filter(|_| least == PathKind::Udp);
        let stun = stun.map(|port| proto::IceServer { urls: vec![format!("stun:{host}:{port}")], ..Default::default() });
        stun.into_iter().chain([relay]).collect()
    }

    fn client_configuration(&mut self, session: SessionId) -> Option<proto::ClientConfiguration> {
        let force_relay = self.least_way(session) == PathKind::RelayTls;
        force_relay.then(|| proto::ClientConfiguration { force_relay: proto::ClientConfigSetting::Enabled as i32, ..Default::default() })
    }

    /// A new signalling connection for a participant that is still here; `None` when it has to join anew.
    pub fn resume(&mut self, claims: &Claims, participant_sid: &str, caller: &Caller, signal: Signal) -> Option<SessionId> {
        let room = self.rooms.get(&claims.video.room)?;
        let is_meant = |p: &&Participant| p.sid == participant_sid && p.info.identity == claims.identity();
        let session = match room.participants.iter().find(is_meant) {
            Some(present) => present.session,
            None => self.call_back(claims, participant_sid, caller)?,
        };
        let participant = self.participant(session).filter(|p| p.dialogue == Dialogue::Signal)?;
        participant.resuming = Some((signal, caller.host.clone()));
        participant.address = caller.address;
        let worker = participant.worker;
        self.mail(worker, Command::TellLastMessage { session });
        Some(session)
    }

    /// The worker has told which reliable message came last: the client that resumes goes on behind it.
    pub(super) fn resumed(&mut self, session: SessionId, last_message_seq: u32) {
        let Some(name) = self.places.get(&session).cloned() else { return };
        let Some(participant) = self.participant(session) else { return };
        let Some((signal, host)) = participant.resuming.take() else { return };
        participant.signal = Some(signal);
        participant.signal_lost_at = None;
        participant.sections.forget_requests();
        let reconnect = proto::ReconnectResponse {
            ice_servers: self.ice_servers(&host, session),
            client_configuration: self.client_configuration(session),
            server_info: Some(self.server_info()),
            last_message_seq,
        };
        self.tell(session, Down::Reconnect(reconnect));
        let mut everybody = self.others(&name, session);
        if let Some(room) = self.rooms.get(&name) {
            everybody.extend(room.participants.iter().filter(|p| p.session == session).map(|p| p.info.clone()));
            // SDKs know participants by identity: of those who have come again only that is told.
            let is_here = |identity: &str| room.participants.iter().any(|p| p.info.identity == identity);
            everybody.extend(room.departed.iter().map(|(_, info)| info).filter(|info| !is_here(&info.identity)).cloned());
        }
        self.tell(session, Down::Update(proto::ParticipantUpdate { participants: everybody }));
        let room = self.rooms.get(&name).map(room_info);
        self.tell(session, Down::RoomUpdate(proto::RoomUpdate { room }));
        self.refresh_token(session);
        self.tell_all_qualities(session);
        self.tell_layers(session);
        self.tell_data_handles(session);
        self.restart_subscriber(session);
    }

    /// What a client that resumes says it has. A track that it publishes and nobody here knows means that the two have come
    /// apart: it has to join anew.
    pub fn sync_state(&mut self, session: SessionId, state: &proto::SyncState) {
        let Some(p) = self.participant(session) else { return };
        let is_known =
            |t: &proto::TrackPublishedResponse| t.track.as_ref().is_none_or(|track| p.tracks.iter().any(|own| own.info.sid == track.sid));
        if let Some(unknown) = state.publish_tracks.iter().find(|t| !is_known(t)) {
            tracing::info!(session = session.0, cid = unknown.cid, "a client resumes with a track that is not here: it joins anew");
            return self.expel(session, proto::DisconnectReason::StateMismatch, Action::Reconnect);
        }
        let subscription = state.subscription.clone().unwrap_or_default();
        if !subscription.subscribe {
            // With automatic subscription on: those it does not want.
            self.update_subscription(session, &subscription);
        }
        let settings = proto::UpdateTrackSettings {
            track_sids: state.track_sids_disabled.clone(),
            disabled: true,
            quality: proto::VideoQuality::High as i32,
            ..Default::default()
        };
        if !settings.track_sids.is_empty() {
            self.track_settings(session, &settings);
        }
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
    pub fn expel(&mut self, session: SessionId, reason: proto::DisconnectReason, action: Action) {
        // Whoever is just coming back hears it too.
        if let Some(p) = self.participant(session)
            && let Some((signal, _)) = p.resuming.take()
        {
            p.signal = Some(signal);
        }
        self.tell(session, Down::Leave(leave(reason, action)));
        self.remove(session, reason);
    }

    /// Takes a participant out for good.
    pub fn remove(&mut self, session: SessionId, reason: proto::DisconnectReason) {
        if let Some((name, gone)) = self.take_out(session, reason) {
            self.note_left(&name, &gone, reason, true);
            self.close_transports(&gone);
        }
    }

    /// Takes a participant out of its room and tells the others; it still has its transports.
    pub(super) fn take_out(&mut self, session: SessionId, reason: proto::DisconnectReason) -> Option<(String, Participant)> {
        let name = self.places.get(&session)?.clone();
        let room = self.rooms.get_mut(&name)?;
        let at = room.participants.iter().position(|p| p.sessions().any(|s| s == session))?;
        let mut gone = room.participants.remove(at);
        let room_id = room.id;
        let tracks: Vec<TrackId> = gone.tracks.iter().map(|t| t.id).collect();
        for worker in self.workers_of(&name).into_iter().filter(|w| *w != gone.worker) {
            for track in &tracks {
                self.mail(worker, Command::Unpublish { room: room_id, track: *track });
            }
        }
        self.spread(&name);
        let was_active = gone.is_active();
        gone.info.state = proto::participant_info::State::Disconnected as i32;
        gone.info.disconnect_reason = reason as i32;
        let published = std::mem::take(&mut gone.info.tracks);
        gone.info.data_tracks.clear();
        gone.info.version += 1;
        for track in published.iter().filter(|_| was_active) {
            self.event("track_unpublished", &name, Some(&gone.info), Some(track));
        }
        self.event(if was_active { "participant_left" } else { "participant_connection_aborted" }, &name, Some(&gone.info), None);
        if let Some(room) = self.rooms.get_mut(&name) {
            room.has_changed = true;
            room.late_news.remove(&gone.sid);
            if !gone.is_hidden() {
                room.departed.retain(|(_, info)| info.sid != gone.info.sid);
                room.departed.push((mono(), gone.info.clone()));
            }
            if room.participants.is_empty() {
                room.empty_since = Some(mono());
            }
        }
        if !gone.is_hidden() {
            self.broadcast(&name, session, &Down::Update(proto::ParticipantUpdate { participants: vec![gone.info.clone()] }));
        }
        self.forget_tracks(&name, &tracks);
        self.forget_data_tracks(&name, &mut gone);
        tracing::info!(room = %name, session = session.0, ?reason, "a participant left");
        Some((name, gone))
    }

    /// Whether a room is refused because the server is about to stop.
    pub fn refuses_room(&self, name: &str) -> bool {
        self.is_draining && !self.rooms.contains_key(name)
    }

    /// The server is about to stop: no room is opened any more.
    pub fn drain(&mut self) {
        self.is_draining = true;
    }

    /// While the server drains: sends on those who lose nothing by it, everybody in rooms where nothing is published for a
    /// while. How many participants are left, those included who may still resume.
    pub fn send_on_idle(&mut self) -> usize {
        let now = mono();
        let mut idle = Vec::new();
        for (name, room) in &mut self.rooms {
            let publishes = |p: &Participant| !p.info.tracks.is_empty() || !p.info.data_tracks.is_empty();
            if room.absent.is_empty() && !room.participants.iter().any(publishes) {
                let since = *room.idle_since.get_or_insert(now);
                if room.participants.is_empty() || now.duration_since(since) >= IDLE_FOR {
                    idle.push(name.clone());
                }
            } else {
                room.idle_since = None;
            }
        }
        for name in idle {
            let sessions: Vec<SessionId> = self.rooms.get(&name).into_iter().flat_map(|r| &r.participants).map(|p| p.session).collect();
            for session in sessions {
                self.expel(session, proto::DisconnectReason::ServerShutdown, Action::Reconnect);
            }
            self.finish(&name);
        }
        self.rooms.values().map(|room| room.participants.len() + room.absent.len()).sum()
    }

    /// Everybody out: the server stops.
    pub fn close_all(&mut self) {
        // Whoever comes back by itself is to find the next server, not this one.
        self.drain();
        let all: Vec<SessionId> = self.rooms.values().flat_map(|r| &r.participants).map(|p| p.session).collect();
        for session in all {
            self.expel(session, proto::DisconnectReason::ServerShutdown, Action::Reconnect);
        }
        let names: Vec<String> = self.rooms.keys().cloned().collect();
        for name in names {
            self.finish(&name);
        }
    }

    /// Somebody who has left, whose transport still tells what passed over it.
    pub fn awaits_figures(&self) -> bool {
        self.notes.awaits_figures()
    }

    /// Nothing happens any more: whoever tells of it may end.
    pub fn let_go(&mut self) {
        self.note_leaving(true);
        self.around.audit = Audit::none(Arc::clone(&self.around.gauges));
        self.around.events = Events::none(Arc::clone(&self.around.gauges));
    }

    pub(super) fn refresh_token(&mut self, session: SessionId) {
        let now = wall().as_secs();
        let keys = self.around.keys.clone();
        let Some(p) = self.participant(session) else { return };
        p.token_due = mono() + TOKEN_INTERVAL;
        let mut claims = p.claims.clone();
        claims.exp = claims.exp.max(now + TOKEN_LIFETIME_S);
        if let Some(token) = keys.sign(&claims) {
            self.tell(session, Down::RefreshToken(token));
        }
    }
}

impl Room {
    /// Tokens of somebody who was taken out count only if they are valid from then on, or later.
    pub(super) fn revoke(&mut self, identity: &str, from: i64) {
        if self.revoked.len() >= REVOKED_MAX
            && let Some(oldest) = self.revoked.iter().min_by_key(|(_, at)| **at).map(|(who, _)| who.clone())
        {
            self.revoked.remove(&oldest);
        }
        self.revoked.insert(identity.to_owned(), from);
    }

    pub(super) fn is_revoked(&self, identity: &str, valid_from: Option<u64>) -> bool {
        self.revoked.get(identity).is_some_and(|from| valid_from.unwrap_or(0) < u64::try_from(*from).unwrap_or(0))
    }

    pub(super) fn participants_max(&self, default: u32) -> usize {
        match self.info.max_participants {
            0 => default as usize,
            own => own.min(default) as usize,
        }
    }
}

pub(super) fn leave(reason: proto::DisconnectReason, action: Action) -> proto::LeaveRequest {
    let can_reconnect = action != Action::Disconnect;
    proto::LeaveRequest { can_reconnect, reason: reason as i32, action: action as i32, ..Default::default() }
}

/// What a client says of the program that it is, in a few words.
fn program(client: &proto::ClientInfo) -> String {
    let sdk = match proto::client_info::Sdk::try_from(client.sdk) {
        Ok(proto::client_info::Sdk::Unknown) | Err(_) => "",
        Ok(sdk) => sdk.as_str_name(),
    };
    let with = |name: &str, version: &str| format!("{name} {version}").trim().to_owned();
    let parts = [with(sdk, &client.version), with(&client.browser, &client.browser_version), with(&client.os, &client.os_version)];
    let named: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    named.join(", ").chars().filter(|c| !c.is_control()).take(PROGRAM_MAX).collect()
}

/// What a token allows.
pub(super) fn permission_of(claims: &Claims) -> proto::ParticipantPermission {
    let grants = &claims.video;
    proto::ParticipantPermission {
        can_subscribe: grants.can_subscribe.unwrap_or(true),
        can_publish: grants.can_publish.unwrap_or(true),
        can_publish_data: grants.can_publish_data.unwrap_or(true),
        can_publish_sources: grants.can_publish_sources.iter().filter_map(|s| source_named(s)).map(|s| s as i32).collect(),
        hidden: grants.hidden,
        can_update_metadata: grants.can_update_own_metadata.unwrap_or(false),
        can_subscribe_metrics: grants.can_subscribe_metrics.unwrap_or(false),
        ..flags(grants.recorder, grants.agent)
    }
}

#[allow(deprecated, reason = "clients of some age read them here")]
fn flags(recorder: bool, agent: bool) -> proto::ParticipantPermission {
    proto::ParticipantPermission { recorder, agent, ..Default::default() }
}
