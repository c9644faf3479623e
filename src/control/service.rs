//! The room service: `livekit.RoomService` over Twirp, one POST a method, protobuf or JSON.
//!
//! ```text
//! POST /twirp/livekit.RoomService/CreateRoom    Authorization: Bearer <JWT with the grant that the method needs>
//!      application/protobuf | application/json  -> the response, or {"code","msg"} with the status of the code
//! ```
//! JSON is a coat at the door: it is turned into protobuf and back by the service's own description, with the field names
//! and the defaults that the Go server writes, and read in snake and in camel case.

use super::auth::{Claims, Denied};
use super::door::Peer;
use super::rooms::{Failure, Later, RoomService};
use super::signal::Front;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::BytesMut;
use http_body_util::BodyExt;
use livekit_protocol as proto;
use prost::Message;
use prost_reflect::{DescriptorPool, DeserializeOptions, DynamicMessage, MethodDescriptor, SerializeOptions};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

/// Longest request, bytes.
pub const REQUEST_MAX: usize = 10 * 1024 * 1024;
/// What is swallowed of a body that is too long, bytes.
const SWALLOWED_MAX: usize = 1024 * 1024;
/// How long a request's body may take.
const BODY_WITHIN: Duration = Duration::from_secs(10);
const ROOM_SERVICE: &str = "livekit.RoomService";

/// `livekit_room.proto` and what it imports, as `protoc --include_imports --descriptor_set_out` writes it; the files come
/// with the crate `livekit-protocol`.
static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(include_bytes!("service/livekit.binpb").as_ref()).unwrap_or_default());

/// Why a request failed, with its Twirp code.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}")]
    Denied(#[from] Denied),
    #[error("the token lacks the grant {0}")]
    NoGrant(&'static str),
    #[error("the token is for another room")]
    OtherRoom,
    #[error("no such method: {0}")]
    BadRoute(String),
    #[error("the request does not decode: {0}")]
    Malformed(String),
    #[error("{0}")]
    Failure(#[from] Failure),
    #[error("the response does not encode")]
    Internal,
}

impl Refused {
    /// Twirp's name and HTTP status of the error (twitchtv/twirp specification, version 7).
    fn code(&self) -> (&'static str, StatusCode) {
        match self {
            Self::Denied(_) => ("unauthenticated", StatusCode::UNAUTHORIZED),
            Self::NoGrant(_) | Self::OtherRoom => ("permission_denied", StatusCode::FORBIDDEN),
            Self::BadRoute(_) => ("bad_route", StatusCode::NOT_FOUND),
            Self::Malformed(_) => ("malformed", StatusCode::BAD_REQUEST),
            Self::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR),
            Self::Failure(failure) => match failure {
                Failure::InvalidArgument(_) => ("invalid_argument", StatusCode::BAD_REQUEST),
                Failure::NotFound(_) => ("not_found", StatusCode::NOT_FOUND),
                Failure::FailedPrecondition(_) => ("failed_precondition", StatusCode::PRECONDITION_FAILED),
                Failure::ResourceExhausted(_) => ("resource_exhausted", StatusCode::TOO_MANY_REQUESTS),
                Failure::Unimplemented(_) => ("unimplemented", StatusCode::NOT_IMPLEMENTED),
                Failure::DeadlineExceeded(_) => ("deadline_exceeded", StatusCode::REQUEST_TIMEOUT),
                Failure::Unavailable(_) => ("unavailable", StatusCode::SERVICE_UNAVAILABLE),
                Failure::Rpc(_) => ("unknown", StatusCode::INTERNAL_SERVER_ERROR),
            },
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (code, status) = self.code();
        let mut body = serde_json::json!({ "code": code, "msg": self.to_string() });
        if let Self::Failure(Failure::Rpc(error)) = &self {
            body["meta"] = serde_json::json!({ "rpc_code": error.code.to_string(), "rpc_message": error.message });
        }
        (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
    }
}

/// How a request is written; the response is written likewise.
#[derive(Clone, Copy)]
enum Coat {
    Protobuf,
    Json,
}

impl Coat {
    fn of(headers: &HeaderMap) -> Result<Self, Refused> {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        match kind.split(';').next().unwrap_or_default().trim() {
            "application/protobuf" => Ok(Self::Protobuf),
            "application/json" => Ok(Self::Json),
            other => Err(Refused::BadRoute(format!("Content-Type {other:?}; use application/protobuf or application/json"))),
        }
    }

    fn take_off(self, method: &MethodDescriptor, body: &Bytes) -> Result<Vec<u8>, Refused> {
        match self {
            Self::Protobuf => Ok(body.to_vec()),
            Self::Json => {
                let mut json = serde_json::Deserializer::from_slice(body);
                let options = DeserializeOptions::new().deny_unknown_fields(false);
                let message = DynamicMessage::deserialize_with_options(method.input(), &mut json, &options);
                let message = message.and_then(|m| json.end().map(|()| m)).map_err(|e| Refused::Malformed(e.to_string()))?;
                Ok(message.encode_to_vec())
            }
        }
    }

    fn put_on(self, method: &MethodDescriptor, response: Vec<u8>) -> Result<Response, Refused> {
        let (kind, body) = match self {
            Self::Protobuf => ("application/protobuf", response),
            Self::Json => {
                let message = DynamicMessage::decode(method.output(), &*response).map_err(|_| Refused::Internal)?;
                let options = SerializeOptions::new().use_proto_field_name(true).skip_default_fields(false);
                let mut json = Vec::new();
                message.serialize_with_options(&mut serde_json::Serializer::new(&mut json), &options).map_err(|_| Refused::Internal)?;
                ("application/json", json)
            }
        };
        Ok(([(header::CONTENT_TYPE, kind)], body).into_response())
    }
}

/// `POST /twirp/{service}/{method}`.
pub async fn call(State(front): State<Arc<Front>>, Path((service, method)): Path<(String, String)>, request: Request) -> Response {
    let peer = request.extensions().get::<Peer>().copied();
    match answer(&front, &service, &method, request).await {
        Ok(response) => response,
        Err(refused) => {
            if front.notes(peer.as_ref()) {
                tracing::info!(service, method, reason = %refused, "a request of the room service was refused");
            }
            refused.into_response()
        }
    }
}

async fn answer(front: &Front, service: &str, method: &str, request: Request) -> Result<Response, Refused> {
    // Nothing is read of a request before its token was verified.
    let claims = front.keys.verify(bearer(request.headers())?)?;
    if service != ROOM_SERVICE {
        return Err(match service {
            "livekit.Egress" | "livekit.Ingress" | "livekit.SIP" | "livekit.AgentDispatchService" => {
                Failure::Unimplemented("this server records nothing, takes no streams in but WHIP, and runs no agents").into()
            }
            _ => Refused::BadRoute(service.into()),
        });
    }
    let found = POOL.get_service_by_name(ROOM_SERVICE).and_then(|s| s.methods().find(|m| m.name() == method));
    let Some(described) = found else { return Err(Refused::BadRoute(method.into())) };
    let coat = Coat::of(request.headers())?;
    let body = read(request.into_body(), REQUEST_MAX).await.map_err(|e| match e {
        Unread::TooLong => Refused::Malformed(format!("longer than {REQUEST_MAX} bytes")),
        Unread::TooSlow => Failure::DeadlineExceeded("the request did not come in time").into(),
    })?;
    let request = coat.take_off(&described, &body)?;
    let response = match dispatch(front, &claims, method, &request)? {
        Outcome::Done(response) => response,
        Outcome::Asked(later) => asked(later).await?,
    };
    coat.put_on(&described, response)
}

/// Why a body was not read.
pub enum Unread {
    TooLong,
    /// It did not come whole in time.
    TooSlow,
}

/// A whole body, within limits of length and time. Of one that is too long some more is swallowed: whoever still sends when
/// the connection closes may not get to see the answer (RFC 9112 §9.6).
pub async fn read(mut body: Body, max: usize) -> Result<Bytes, Unread> {
    let whole = async {
        let (mut read, mut len) = (BytesMut::new(), 0);
        while let Some(frame) = body.frame().await {
            let data = frame.map_err(|_| Unread::TooSlow)?.into_data().unwrap_or_default();
            len += data.len();
            if len <= max {
                read.extend_from_slice(&data);
            } else if len > max + SWALLOWED_MAX {
                break;
            }
        }
        if len > max { Err(Unread::TooLong) } else { Ok(read.freeze()) }
    };
    tokio::time::timeout(BODY_WITHIN, whole).await.unwrap_or(Err(Unread::TooSlow))
}

/// The token of a request: `Authorization: Bearer …`.
pub fn bearer(headers: &HeaderMap) -> Result<&str, Denied> {
    let value = headers.get(header::AUTHORIZATION).ok_or(Denied::Missing)?;
    value.to_str().ok().and_then(|v| v.strip_prefix("Bearer ")).ok_or(Denied::Malformed)
}

fn decode<M: Message + Default>(request: &[u8]) -> Result<M, Refused> {
    M::decode(request).map_err(|e| Refused::Malformed(e.to_string()))
}

fn administers(claims: &Claims, room: &str) -> Result<(), Refused> {
    if !claims.video.room_admin {
        return Err(Refused::NoGrant("roomAdmin"));
    }
    if claims.video.room != room {
        return Err(Refused::OtherRoom);
    }
    Ok(())
}

/// Who asks, as the audit log says it: the API key, and whoever the token names.
fn by(claims: &Claims) -> String {
    let who = claims.identity();
    if who.is_empty() { claims.iss.clone() } else { format!("{} ({who})", claims.iss) }
}

/// What a method came to.
enum Outcome {
    Done(Vec<u8>),
    /// A participant was asked.
    Asked(Later),
}

fn dispatch(front: &Front, claims: &Claims, method: &str, request: &[u8]) -> Result<Outcome, Refused> {
    let needs = |has: bool, grant| if has { Ok(()) } else { Err(Refused::NoGrant(grant)) };
    let video = &claims.video;
    let mut rooms = front.rooms();
    let mut service = RoomService(&mut rooms);
    let response = match method {
        "CreateRoom" => {
            needs(video.room_create, "roomCreate")?;
            service.create_room(decode(request)?)?.encode_to_vec()
        }
        "ListRooms" => {
            needs(video.room_list, "roomList")?;
            service.list_rooms(&decode(request)?).encode_to_vec()
        }
        "DeleteRoom" => {
            needs(video.room_create, "roomCreate")?;
            let room = decode::<proto::DeleteRoomRequest>(request)?.room;
            service.delete_room(&room)?;
            service.0.note_moderated(&by(claims), method, &room, "");
            proto::DeleteRoomResponse {}.encode_to_vec()
        }
        "ListParticipants" => {
            let request: proto::ListParticipantsRequest = decode(request)?;
            administers(claims, &request.room)?;
            service.list_participants(&request.room)?.encode_to_vec()
        }
        "GetParticipant" => {
            let request: proto::RoomParticipantIdentity = decode(request)?;
            administers(claims, &request.room)?;
            service.participant(&request.room, &request.identity)?.encode_to_vec()
        }
        "RemoveParticipant" => {
            let request: proto::RoomParticipantIdentity = decode(request)?;
            administers(claims, &request.room)?;
            service.remove_participant(&request)?;
            service.0.note_moderated(&by(claims), method, &request.room, &request.identity);
            proto::RemoveParticipantResponse {}.encode_to_vec()
        }
        "MutePublishedTrack" => {
            let request: proto::MuteRoomTrackRequest = decode(request)?;
            administers(claims, &request.room)?;
            let track = service.mute_track(&request)?;
            let action = if request.muted { method } else { "UnmutePublishedTrack" };
            service.0.note_moderated(&by(claims), action, &request.room, &request.identity);
            proto::MuteRoomTrackResponse { track: Some(track) }.encode_to_vec()
        }
        "UpdateParticipant" => {
            let request: proto::UpdateParticipantRequest = decode(request)?;
            administers(claims, &request.room)?;
            let info = service.update_participant(&request)?;
            service.0.note_moderated(&by(claims), method, &request.room, &request.identity);
            info.encode_to_vec()
        }
        "UpdateSubscriptions" => {
            let request: proto::UpdateSubscriptionsRequest = decode(request)?;
            administers(claims, &request.room)?;
            let (room, identity) = (request.room.clone(), request.identity.clone());
            service.update_subscriptions(request)?;
            service.0.note_moderated(&by(claims), method, &room, &identity);
            proto::UpdateSubscriptionsResponse {}.encode_to_vec()
        }
        "SendData" => {
            let request: proto::SendDataRequest = decode(request)?;
            administers(claims, &request.room)?;
            service.send_data(request)?;
            proto::SendDataResponse {}.encode_to_vec()
        }
        "UpdateRoomMetadata" => {
            let request: proto::UpdateRoomMetadataRequest = decode(request)?;
            administers(claims, &request.room)?;
            service.update_room_metadata(&request)?.encode_to_vec()
        }
        "ForwardParticipant" | "MoveParticipant" => {
            return Err(Failure::Unimplemented("participants stay in the room that they joined").into());
        }
        "PerformRpc" => {
            let request: proto::PerformRpcRequest = decode(request)?;
            administers(claims, &request.room)?;
            return service.perform_rpc(&request).map(Outcome::Asked).map_err(Refused::from);
        }
        other => return Err(Refused::BadRoute(other.into())),
    };
    Ok(Outcome::Done(response))
}

/// Waits for what a participant answers, without holding up anybody else.
async fn asked(later: Later) -> Result<Vec<u8>, Refused> {
    match later.await {
        Ok(Ok(payload)) => Ok(proto::PerformRpcResponse { payload }.encode_to_vec()),
        Ok(Err(error)) => Err(Failure::Rpc(error).into()),
        Err(_) => Err(Failure::DeadlineExceeded("the participant did not answer in time").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(name: &str) -> MethodDescriptor {
        let service = POOL.get_service_by_name(ROOM_SERVICE).expect("in the description");
        service.methods().find(|m| m.name() == name).expect("a method")
    }

    #[test]
    fn json_is_read_in_both_cases_and_written_as_the_go_server_does() {
        for json in [r#"{"name":"a","emptyTimeout":7,"someday":1}"#, r#"{"name":"a","empty_timeout":7}"#] {
            let bytes = Coat::Json.take_off(&method("CreateRoom"), &Bytes::from_static(json.as_bytes())).expect(json);
            let request: proto::CreateRoomRequest = decode(&bytes).expect("protobuf");
            assert_eq!((request.name.as_str(), request.empty_timeout), ("a", 7));
        }
        for json in ["", "[]", "{\"name\":7}", "{\"name\":\"a\"}{", "nonsense"] {
            assert!(Coat::Json.take_off(&method("CreateRoom"), &Bytes::from_static(json.as_bytes())).is_err(), "{json}");
        }
    }

    #[tokio::test]
    async fn responses_have_their_defaults() {
        let room = proto::Room { name: "a".into(), creation_time: 7, ..Default::default() };
        let response = proto::ListRoomsResponse { rooms: vec![room] }.encode_to_vec();
        let response = Coat::Json.put_on(&method("ListRooms"), response).expect("encodes");
        let body = axum::body::to_bytes(response.into_body(), 10_000).await.expect("a body");
        let json: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        let room = &json["rooms"][0];
        assert_eq!((&room["creation_time"], &room["num_participants"], &room["metadata"]), (&"7".into(), &0.into(), &"".into()));
    }

    #[test]
    fn every_method_of_the_service_is_known() {
        let service = POOL.get_service_by_name(ROOM_SERVICE).expect("in the description");
        let text = include_str!("service.rs").split("#[cfg(test)]").next().expect("a first part");
        for method in service.methods() {
            assert!(text.contains(&format!("\"{}\"", method.name())), "{}", method.name());
        }
    }
}
