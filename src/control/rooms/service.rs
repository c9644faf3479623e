//! What the room service does to rooms: one method each, refused with the code that the service answers.

use super::data::RpcError;
use super::{Down, Rooms, mono, room_info};
use crate::base::id::SessionId;
use crate::control::tracks::is_room_too_long;
use crate::wire::data_packet::Delivery;
use livekit_protocol as proto;
use proto::leave_request::Action;
use std::time::Duration;
use tokio::sync::oneshot;

/// Nonces of messages that are remembered, so that one that is sent again is not heard twice.
const NONCES_MAX: usize = 4_096;
const NONCE_FOR: Duration = Duration::from_secs(60);
/// How long a call to a participant may take when the caller does not say, and at most.
const RPC_WITHIN: Duration = Duration::from_secs(10);
const RPC_WITHIN_MAX: Duration = Duration::from_secs(60);
/// Longest method name and payload of a call, bytes; the SDKs' own limits.
const RPC_METHOD_MAX: usize = 64;
const RPC_PAYLOAD_MAX: usize = 15 * 1024;
/// Longest message that the service sends, bytes.
const DATA_MAX: usize = 60 * 1024;

/// Why the service did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("{0}")]
    InvalidArgument(&'static str),
    #[error("{0}")]
    NotFound(&'static str),
    #[error("{0}")]
    FailedPrecondition(&'static str),
    #[error("{0}")]
    ResourceExhausted(&'static str),
    #[error("{0}")]
    Unimplemented(&'static str),
    #[error("{0}")]
    DeadlineExceeded(&'static str),
    #[error("{0}")]
    Unavailable(&'static str),
    /// What the participant itself answered.
    #[error("{}", .0.message)]
    Rpc(RpcError),
}

const NO_ROOM: Failure = Failure::NotFound("requested room does not exist");
const NO_PARTICIPANT: Failure = Failure::NotFound("participant does not exist");
const NO_TRACK: Failure = Failure::NotFound("track does not exist");
const TOO_LONG: Failure = Failure::InvalidArgument("name, metadata or attributes are too long");

/// An answer that comes later.
pub type Later = oneshot::Receiver<Result<String, RpcError>>;

/// The room service's view of the rooms.
pub struct RoomService<'a>(pub &'a mut Rooms);

impl RoomService<'_> {
    pub fn create_room(&mut self, request: proto::CreateRoomRequest) -> Result<proto::Room, Failure> {
        if request.name.is_empty() {
            return Err(Failure::InvalidArgument("a room needs a name"));
        }
        if is_room_too_long(&request.name, &request.metadata) {
            return Err(Failure::InvalidArgument("the room's name has at most 256 bytes, its metadata 64 KiB"));
        }
        let is_new = !self.0.rooms.contains_key(&request.name);
        if is_new && self.0.is_draining {
            return Err(Failure::Unavailable("this server is about to stop and opens no room; try again soon, or another one"));
        }
        let config = proto::RoomConfiguration {
            empty_timeout: request.empty_timeout,
            departure_timeout: request.departure_timeout,
            max_participants: request.max_participants,
            metadata: request.metadata.clone(),
            min_playout_delay: request.min_playout_delay,
            max_playout_delay: request.max_playout_delay,
            sync_streams: request.sync_streams,
            ..Default::default()
        };
        if is_new {
            self.0.room_for(&request.name, Some(&config));
        } else if let Some(room) = self.0.rooms.get_mut(&request.name) {
            // A room that is there takes what is said, and keeps what is not.
            let take = |own: &mut u32, wish: u32| *own = if wish > 0 { wish } else { *own };
            take(&mut room.info.empty_timeout, request.empty_timeout);
            take(&mut room.info.departure_timeout, request.departure_timeout);
            take(&mut room.info.max_participants, request.max_participants);
            if !request.metadata.is_empty() {
                room.info.metadata = request.metadata;
                room.has_changed = true;
            }
        }
        self.0.rooms.get(&request.name).map(room_info).ok_or(NO_ROOM)
    }

    pub fn list_rooms(&self, request: &proto::ListRoomsRequest) -> proto::ListRoomsResponse {
        let is_wanted = |name: &String| request.names.is_empty() || request.names.contains(name);
        let rooms = self.0.rooms.iter().filter(|(name, _)| is_wanted(name)).map(|(_, room)| room_info(room)).collect();
        proto::ListRoomsResponse { rooms }
    }

    pub fn delete_room(&mut self, name: &str) -> Result<(), Failure> {
        let room = self.0.rooms.get(name).ok_or(NO_ROOM)?;
        let everybody: Vec<SessionId> = room.participants.iter().map(|p| p.session).collect();
        for session in everybody {
            self.0.expel(session, proto::DisconnectReason::RoomDeleted, Action::Disconnect);
        }
        self.0.finish(name);
        Ok(())
    }

    pub fn list_participants(&self, room: &str) -> Result<proto::ListParticipantsResponse, Failure> {
        let room = self.0.rooms.get(room).ok_or(NO_ROOM)?;
        Ok(proto::ListParticipantsResponse { participants: room.participants.iter().map(|p| p.info.clone()).collect() })
    }

    fn find(&self, room: &str, identity: &str) -> Result<SessionId, Failure> {
        let room = self.0.rooms.get(room).ok_or(NO_ROOM)?;
        room.participants.iter().find(|p| p.info.identity == identity).map(|p| p.session).ok_or(NO_PARTICIPANT)
    }

    fn info(&mut self, session: SessionId) -> Result<proto::ParticipantInfo, Failure> {
        self.0.participant(session).map(|p| p.info.clone()).ok_or(NO_PARTICIPANT)
    }

    pub fn participant(&mut self, room: &str, identity: &str) -> Result<proto::ParticipantInfo, Failure> {
        let session = self.find(room, identity)?;
        self.info(session)
    }

    /// Takes somebody out. With `revoke_token_ts`, tokens that were valid from before then do not let it in again.
    pub fn remove_participant(&mut self, request: &proto::RoomParticipantIdentity) -> Result<(), Failure> {
        let present = self.find(&request.room, &request.identity);
        let present = match self.0.forget_absent(&request.room, &request.identity) {
            true => present.ok(),
            false => Some(present?),
        };
        if request.revoke_token_ts > 0
            && let Some(room) = self.0.rooms.get_mut(&request.room)
        {
            room.revoke(&request.identity, request.revoke_token_ts);
        }
        if let Some(session) = present {
            self.0.expel(session, proto::DisconnectReason::ParticipantRemoved, Action::Disconnect);
        }
        Ok(())
    }

    pub fn mute_track(&mut self, request: &proto::MuteRoomTrackRequest) -> Result<proto::TrackInfo, Failure> {
        let session = self.find(&request.room, &request.identity)?;
        if !request.muted && !self.0.around.rooms.enable_remote_unmute {
            return Err(Failure::FailedPrecondition("unmuting others is not allowed; rooms.enable_remote_unmute allows it"));
        }
        let track = |rooms: &mut Rooms| {
            let p = rooms.participant(session)?;
            p.tracks.iter().find(|t| t.info.sid == request.track_sid).map(|t| t.info.clone())
        };
        track(self.0).ok_or(NO_TRACK)?;
        // First this and then what everybody is told: an SDK that sees itself muted without it sets the server right.
        self.0.tell(session, Down::Mute(proto::MuteTrackRequest { sid: request.track_sid.clone(), muted: request.muted }));
        self.0.set_muted(session, &request.track_sid, request.muted, true);
        track(self.0).ok_or(NO_TRACK)
    }

    pub fn update_participant(&mut self, request: &proto::UpdateParticipantRequest) -> Result<proto::ParticipantInfo, Failure> {
        let session = self.find(&request.room, &request.identity)?;
        if !self.0.describe(session, &request.name, &request.metadata, &request.attributes) {
            return Err(TOO_LONG);
        }
        if let Some(permission) = &request.permission {
            self.0.set_permission(session, permission.clone());
        }
        self.info(session)
    }

    pub fn update_subscriptions(&mut self, request: proto::UpdateSubscriptionsRequest) -> Result<(), Failure> {
        let session = self.find(&request.room, &request.identity)?;
        let proto::UpdateSubscriptionsRequest { track_sids, subscribe, participant_tracks, .. } = request;
        self.0.update_subscription(session, &proto::UpdateSubscription { track_sids, subscribe, participant_tracks });
        Ok(())
    }

    #[allow(deprecated, reason = "SDKs of some age name receivers by sid")]
    pub fn send_data(&mut self, request: proto::SendDataRequest) -> Result<(), Failure> {
        let room = self.0.rooms.get_mut(&request.room).ok_or(NO_ROOM)?;
        if request.data.len() > DATA_MAX {
            return Err(Failure::InvalidArgument("a message has at most 60 KiB"));
        }
        if !request.nonce.is_empty() && !room.is_first(&request.nonce) {
            return Ok(());
        }
        let of_sid = |sid: &String| room.participants.iter().find(|p| p.sid == *sid).map(|p| p.info.identity.clone());
        let mut to: Vec<String> = request.destination_sids.iter().filter_map(of_sid).collect();
        let names_somebody = !request.destination_sids.is_empty() || !request.destination_identities.is_empty();
        to.extend(request.destination_identities);
        if names_somebody && to.is_empty() {
            return Ok(());
        }
        let user = proto::UserPacket { payload: request.data, topic: request.topic, ..Default::default() };
        let packet =
            proto::DataPacket { destination_identities: to, value: Some(proto::data_packet::Value::User(user)), ..of_kind(request.kind) };
        let is_lossy = request.kind == proto::data_packet::Kind::Lossy as i32;
        self.0.send_message(&request.room, if is_lossy { Delivery::Lossy } else { Delivery::Reliable }, &packet);
        Ok(())
    }

    pub fn update_room_metadata(&mut self, request: &proto::UpdateRoomMetadataRequest) -> Result<proto::Room, Failure> {
        if is_room_too_long("", &request.metadata) {
            return Err(Failure::InvalidArgument("a room's metadata has at most 64 KiB"));
        }
        let room = self.0.rooms.get_mut(&request.room).ok_or(NO_ROOM)?;
        room.info.metadata.clone_from(&request.metadata);
        let info = room_info(room);
        let update = Down::RoomUpdate(proto::RoomUpdate { room: Some(info.clone()) });
        self.0.broadcast(&request.room, SessionId(0), &update);
        Ok(info)
    }

    /// Calls a participant's method; its answer comes later.
    pub fn perform_rpc(&mut self, request: &proto::PerformRpcRequest) -> Result<Later, Failure> {
        self.find(&request.room, &request.destination_identity)?;
        if request.method.is_empty() || request.method.len() > RPC_METHOD_MAX {
            return Err(Failure::InvalidArgument("a method's name has from 1 to 64 bytes"));
        }
        if request.payload.len() > RPC_PAYLOAD_MAX {
            return Err(Failure::InvalidArgument("a call's payload has at most 15 KiB"));
        }
        let within = match request.response_timeout_ms {
            0 => RPC_WITHIN,
            ms => Duration::from_millis(ms.into()).min(RPC_WITHIN_MAX),
        };
        self.0.call(&request.room, request, within).ok_or(Failure::ResourceExhausted("too many calls wait for an answer"))
    }
}

#[allow(deprecated, reason = "clients of some age read the kind here")]
fn of_kind(kind: i32) -> proto::DataPacket {
    proto::DataPacket { kind, ..Default::default() }
}

impl super::Room {
    /// Whether a message with this nonce comes for the first time lately.
    fn is_first(&mut self, nonce: &[u8]) -> bool {
        let now = mono();
        self.nonces.retain(|(at, _)| now.duration_since(*at) < NONCE_FOR);
        let is_first = !self.nonces.iter().any(|(_, known)| known == nonce);
        if is_first {
            if self.nonces.len() >= NONCES_MAX {
                self.nonces.pop_front();
            }
            self.nonces.push_back((now, nonce.to_owned()));
        }
        is_first
    }
}
