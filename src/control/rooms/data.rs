//! Data tracks, and room messages in which the server itself takes part: those of the room service, and its RPCs.

use super::{Down, Participant, Rooms, mono};
use crate::base::id::SessionId;
use crate::shard::mail::Command;
use crate::wire::data_packet::{Delivery, SERVER_IDENTITIES};
use livekit_protocol as proto;
use prost::Message as _;
use proto::data_packet::Value;
use proto::request_response::{Reason, Request};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Data tracks of one participant, and those that one may subscribe to.
const TRACKS_MAX: usize = 64;
const SUBSCRIBED_MAX: usize = 1_024;
/// Longest name of a data track, bytes.
const NAME_MAX: usize = 256;
/// Longest request for a data track, bytes, and most entries of one change of subscriptions.
const REQUEST_MAX: usize = 4 * 1024;
const UPDATES_MAX: usize = 2_048;
/// Calls of the server's own that wait for an answer.
const RPCS_MAX: usize = 1_024;

/// A data track, and who gets it under which handle.
pub(in crate::control) struct DataTrack {
    pub(super) info: proto::DataTrackInfo,
    hearers: BTreeMap<SessionId, u16>,
}

/// Calls to participants, by their id.
#[derive(Default)]
pub(super) struct Rpcs(HashMap<String, Rpc>);

struct Rpc {
    room: String,
    to: String,
    answer: oneshot::Sender<Result<String, RpcError>>,
    due: Instant,
}

/// What a participant answered to a call, when that was not what was asked for; code and text are the SDKs'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpcError {
    pub code: u32,
    pub message: String,
}

impl Rooms {
    pub fn publish_data_track(&mut self, session: SessionId, request: proto::PublishDataTrackRequest) {
        let sid = self.sid("DTR_");
        let Some(p) = self.participant(session) else { return };
        let may = p.info.permission.as_ref().is_some_and(|p| p.can_publish_data);
        let refusal = if !may {
            Some((Reason::NotAllowed, "the token does not allow publishing data"))
        } else if !(1..=0xFFFF).contains(&request.pub_handle) {
            Some((Reason::InvalidHandle, "a handle is a number from 1 to 65535"))
        } else if request.name.is_empty() || request.name.len() > NAME_MAX {
            Some((Reason::InvalidName, "a data track's name has from 1 to 256 bytes"))
        } else if request.encoded_len() > REQUEST_MAX {
            Some((Reason::LimitExceeded, "a request for a data track has at most 4 KiB"))
        } else if p.data_tracks.iter().any(|t| t.info.pub_handle == request.pub_handle) {
            Some((Reason::DuplicateHandle, "this handle is in use"))
        } else if p.data_tracks.iter().any(|t| t.info.name == request.name) {
            Some((Reason::DuplicateName, "a data track of this name is published already"))
        } else if p.data_tracks.len() >= TRACKS_MAX {
            Some((Reason::LimitExceeded, "a participant may publish 64 data tracks"))
        } else {
            None
        };
        if let Some((reason, message)) = refusal {
            return self.respond(session, 0, reason, message, Request::PublishDataTrack(request));
        }
        let info = proto::DataTrackInfo {
            pub_handle: request.pub_handle,
            sid,
            name: request.name,
            encryption: request.encryption,
            frame_encoding: request.frame_encoding,
            schema: request.schema,
        };
        p.data_tracks.push(DataTrack { info: info.clone(), hearers: BTreeMap::new() });
        self.tell(session, Down::PublishDataTrackResponse(proto::PublishDataTrackResponse { info: Some(info) }));
        self.data_tracks_changed(session);
    }

    pub fn unpublish_data_track(&mut self, session: SessionId, request: proto::UnpublishDataTrackRequest) {
        let Some(p) = self.participant(session) else { return };
        let Some(at) = p.data_tracks.iter().position(|t| t.info.pub_handle == request.pub_handle) else {
            return self.respond(session, 0, Reason::NotFound, "no data track has this handle", Request::UnpublishDataTrack(request));
        };
        let gone = p.data_tracks.remove(at);
        self.stop_data_track(session, &gone);
        self.tell(session, Down::UnpublishDataTrackResponse(proto::UnpublishDataTrackResponse { info: Some(gone.info) }));
        self.data_tracks_changed(session);
    }

    /// A participant may no longer publish data.
    pub(super) fn take_data_tracks(&mut self, session: SessionId) {
        let Some(p) = self.participant(session) else { return };
        for gone in std::mem::take(&mut p.data_tracks) {
            self.stop_data_track(session, &gone);
            self.tell(session, Down::UnpublishDataTrackResponse(proto::UnpublishDataTrackResponse { info: Some(gone.info) }));
        }
        self.data_tracks_changed(session);
    }

    pub(super) fn data_tracks_changed(&mut self, session: SessionId) {
        let Some(p) = self.participant(session) else { return };
        let now: Vec<proto::DataTrackInfo> = p.data_tracks.iter().map(|t| t.info.clone()).collect();
        if p.info.data_tracks != now {
            p.info.data_tracks = now;
            self.announce(session, true);
        }
    }

    fn stop_data_track(&mut self, publisher: SessionId, gone: &DataTrack) {
        self.route_data(publisher, gone.info.pub_handle, Vec::new());
        let hearers: Vec<SessionId> = gone.hearers.keys().copied().collect();
        for hearer in hearers {
            self.tell_data_handles(hearer);
        }
    }

    /// A participant hears no data track any longer.
    pub(super) fn unsubscribe_from_data(&mut self, session: SessionId) {
        if let Some(name) = self.places.get(&session).cloned() {
            self.forget_data_hearer(&name, session);
            self.tell_data_handles(session);
        }
    }

    fn forget_data_hearer(&mut self, room: &str, session: SessionId) {
        let mut changed = Vec::new();
        for p in self.rooms.get_mut(room).into_iter().flat_map(|r| &mut r.participants) {
            for track in &mut p.data_tracks {
                if track.hearers.remove(&session).is_some() {
                    changed.push((p.session, track.info.pub_handle));
                }
            }
        }
        for (publisher, handle) in changed {
            self.data_hearers_changed(publisher, handle);
        }
    }

    /// A participant has left: its subscriptions to data tracks go, and those of others to its own.
    pub(super) fn forget_data_tracks(&mut self, room: &str, gone: &mut Participant) {
        self.forget_data_hearer(room, gone.session);
        let hearers: Vec<SessionId> = gone.data_tracks.iter_mut().flat_map(|t| std::mem::take(&mut t.hearers).into_keys()).collect();
        for hearer in hearers {
            self.tell_data_handles(hearer);
        }
    }

    pub fn update_data_subscription(&mut self, session: SessionId, request: &proto::UpdateDataSubscription) {
        for update in request.updates.iter().take(UPDATES_MAX) {
            self.subscribe_data(session, &update.track_sid, update.subscribe);
        }
        self.tell_data_handles(session);
    }

    fn subscribe_data(&mut self, session: SessionId, track_sid: &str, subscribe: bool) {
        let Some(room) = self.room_of(session) else { return };
        let Some(me) = room.participants.iter().find(|p| p.session == session) else { return };
        let may = me.info.permission.as_ref().is_some_and(|p| p.can_subscribe);
        let others = || room.participants.iter().filter(|p| p.session != session).flat_map(|p| &p.data_tracks);
        if !others().any(|t| t.info.sid == track_sid) {
            return;
        }
        let taken: HashSet<u16> = others().filter_map(|t| t.hearers.get(&session).copied()).collect();
        let free = (1..=u16::MAX).find(|h| !taken.contains(h));
        let publishers = room.participants.iter_mut().filter(|p| p.session != session);
        let found = publishers.flat_map(|p| p.data_tracks.iter_mut().map(|t| (p.session, t))).find(|(_, t)| t.info.sid == track_sid);
        let Some((publisher, track)) = found else { return };
        match (subscribe, free) {
            (true, Some(handle)) if may && taken.len() < SUBSCRIBED_MAX => {
                track.hearers.entry(session).or_insert(handle);
            }
            (true, _) => {}
            (false, _) => {
                track.hearers.remove(&session);
            }
        }
        let handle = track.info.pub_handle;
        self.data_hearers_changed(publisher, handle);
    }

    /// The worker of a publisher is told who gets one of its data tracks.
    fn data_hearers_changed(&mut self, publisher: SessionId, pub_handle: u32) {
        let Some(room) = self.room_of(publisher) else { return };
        let track = room.participants.iter().filter(|p| p.session == publisher).flat_map(|p| &p.data_tracks);
        let Some(track) = track.into_iter().find(|t| t.info.pub_handle == pub_handle) else { return };
        let place = |(session, handle): (&SessionId, &u16)| {
            let p = room.participants.iter().find(|p| p.session == *session)?;
            Some((p.worker, p.ear(), *handle))
        };
        let hearers = track.hearers.iter().filter_map(place).collect();
        self.route_data(publisher, pub_handle, hearers);
    }

    fn route_data(&mut self, publisher: SessionId, pub_handle: u32, hearers: Vec<(crate::base::id::WorkerId, SessionId, u16)>) {
        let Some(worker) = self.participant(publisher).map(|p| p.worker) else { return };
        self.mail(worker, Command::RouteData { publisher, handle: pub_handle as u16, hearers });
    }

    /// Tells a participant under which handles the data tracks come that it subscribes to.
    pub(super) fn tell_data_handles(&mut self, session: SessionId) {
        let Some(room) = self.room_of(session) else { return };
        let of = |p: &Participant| {
            let identity = p.info.identity.clone();
            let mine = p.data_tracks.iter().filter_map(|t| Some((*t.hearers.get(&session)?, t.info.sid.clone())));
            mine.map(|(handle, sid)| (handle, sid, identity.clone(), p.sid.clone())).collect::<Vec<_>>()
        };
        let handles = room.participants.iter().flat_map(of);
        let sub_handles: HashMap<u32, _> = handles
            .map(|(handle, track_sid, publisher_identity, publisher_sid)| {
                let track = proto::data_track_subscriber_handles::PublishedDataTrack { publisher_identity, publisher_sid, track_sid };
                (u32::from(handle), track)
            })
            .collect();
        self.tell(session, Down::DataTrackSubscriberHandles(proto::DataTrackSubscriberHandles { sub_handles }));
    }

    // ---- the server's own messages --------------------------------------------------------------------------------

    /// Sends a message of the server's own into a room.
    pub(super) fn send_message(&mut self, room: &str, delivery: Delivery, packet: &proto::DataPacket) {
        let Some(id) = self.rooms.get(room).map(|r| r.id) else { return };
        let bytes = packet.encode_to_vec();
        for worker in self.workers_of(room) {
            self.mail(worker, Command::Send { room: id, delivery, bytes: bytes.clone() });
        }
    }

    /// Calls a participant's method; the answer comes through the channel.
    pub(super) fn call(
        &mut self,
        room: &str,
        request: &proto::PerformRpcRequest,
        within: Duration,
    ) -> Option<oneshot::Receiver<Result<String, RpcError>>> {
        if self.rpcs.0.len() >= RPCS_MAX {
            return None;
        }
        let id = self.secrets.id_chars(22);
        let (answer, answered) = oneshot::channel();
        let due = mono() + within;
        let to = request.destination_identity.clone();
        self.rpcs.0.insert(id.clone(), Rpc { room: room.to_owned(), to: to.clone(), answer, due });
        let call = proto::RpcRequest {
            id,
            method: request.method.clone(),
            payload: request.payload.clone(),
            response_timeout_ms: within.as_millis() as u32,
            version: 1,
            ..Default::default()
        };
        let packet = proto::DataPacket {
            participant_identity: format!("{SERVER_IDENTITIES}rpc"),
            destination_identities: vec![to],
            value: Some(Value::RpcRequest(call)),
            ..Default::default()
        };
        self.send_message(room, Delivery::Reliable, &packet);
        Some(answered)
    }

    /// A participant wrote to the server: the answer to a call, else nothing of use.
    pub(super) fn data_for_server(&mut self, session: SessionId, bytes: &[u8]) {
        let Ok(packet) = proto::DataPacket::decode(bytes) else { return };
        let Some(Value::RpcResponse(response)) = packet.value else { return };
        let Some(name) = self.places.get(&session).cloned() else { return };
        let Some(identity) = self.participant(session).map(|p| p.info.identity.clone()) else { return };
        // Only the one that was asked answers.
        if self.rpcs.0.get(&response.request_id).is_none_or(|rpc| rpc.room != name || rpc.to != identity) {
            return;
        }
        let Some(rpc) = self.rpcs.0.remove(&response.request_id) else { return };
        use proto::rpc_response::Value as Answer;
        let answer = match response.value {
            Some(Answer::Payload(payload)) => Ok(payload),
            Some(Answer::Error(error)) => Err(RpcError { code: error.code, message: error.message }),
            _ => Err(RpcError { code: 1500, message: "the answer is of a kind that is not understood".into() }),
        };
        let _ = rpc.answer.send(answer);
    }

    pub(super) fn tick_rpcs(&mut self, now: Instant) {
        // Dropping the channel tells the one that waits.
        self.rpcs.0.retain(|_, rpc| rpc.due > now && !rpc.answer.is_closed());
    }
}
