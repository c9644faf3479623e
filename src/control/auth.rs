//! Tokens: JWT HS256, the API key in `iss` selects the secret, the claims are LiveKit's video grants.

use arc_swap::ArcSwap;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use livekit_protocol as proto;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Allowed difference of clocks, seconds.
const LEEWAY_S: u64 = 60;
/// Longest identity and room name, bytes.
pub const NAME_MAX: usize = 256;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VideoGrants {
    pub room_join: bool,
    pub room_create: bool,
    pub room_admin: bool,
    pub room_list: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub room: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_publish: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_subscribe: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_publish_data: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub can_publish_sources: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_update_own_metadata: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub can_subscribe_metrics: Option<bool>,
    pub hidden: bool,
    pub recorder: bool,
    pub agent: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Claims {
    pub iss: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sub: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub jti: String,
    pub exp: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nbf: Option<u64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub metadata: String,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    pub attributes: HashMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    pub video: VideoGrants,
    /// What a room is made like that this token brings into being.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_config: Option<proto::RoomConfiguration>,
    /// Of a webhook's body.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sha256: String,
}

impl Claims {
    /// Who this is: `sub`, in old tokens `jti`.
    pub fn identity(&self) -> &str {
        if self.sub.is_empty() { &self.jti } else { &self.sub }
    }
}

/// Why nobody gets in with this; status and text are what the SDKs look at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    #[error("no token: put it in the Authorization header or in access_token")]
    Missing,
    #[error("the token is no JWT")]
    Malformed,
    #[error("unknown API key: {0}")]
    UnknownKey(String),
    #[error("the token has expired (or a clock is wrong: the server's, or that of whoever made it)")]
    Expired,
    #[error("the token is not valid yet (or a clock is wrong: the server's, or that of whoever made it)")]
    NotYetValid,
    #[error("the token's signature does not fit its API key")]
    BadSignature,
    #[error("the token does not allow joining a room")]
    NoJoin,
    #[error("the token names no room")]
    NoRoom,
    #[error("the room's name is longer than {NAME_MAX} bytes")]
    RoomTooLong,
    #[error("the token names no identity")]
    NoIdentity,
    #[error("the identity is longer than {NAME_MAX} bytes")]
    IdentityTooLong,
    /// The SDKs look for these very words.
    #[error("requested room does not exist")]
    RoomMissing,
}

impl Denied {
    pub fn status(&self) -> u16 {
        match self {
            Self::Missing
            | Self::Malformed
            | Self::UnknownKey(_)
            | Self::Expired
            | Self::NotYetValid
            | Self::BadSignature
            | Self::NoJoin => 401,
            Self::NoRoom | Self::RoomTooLong | Self::NoIdentity | Self::IdentityTooLong => 400,
            Self::RoomMissing => 404,
        }
    }

    /// As `postern_joins_total` counts it.
    pub fn outcome(&self) -> &'static str {
        match self {
            Self::Missing => "token_missing",
            Self::Malformed => "token_malformed",
            Self::UnknownKey(_) => "token_unknown_key",
            Self::Expired => "token_expired",
            Self::NotYetValid => "token_not_yet_valid",
            Self::BadSignature => "token_bad_signature",
            Self::NoRoom | Self::RoomTooLong | Self::NoIdentity | Self::IdentityTooLong => "token_incomplete",
            Self::NoJoin => "not_allowed",
            Self::RoomMissing => "room_missing",
        }
    }
}

/// API keys and their secrets; the same ones for everybody who has a clone, also when they are replaced.
#[derive(Clone)]
pub struct Keys(Arc<ArcSwap<BTreeMap<String, String>>>);

impl Keys {
    pub fn new(keys: &BTreeMap<String, String>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(keys.clone())))
    }

    /// From now on these.
    pub fn replace(&self, keys: &BTreeMap<String, String>) {
        self.0.store(Arc::new(keys.clone()));
    }

    /// The first key, which signs where none is named.
    pub fn first(&self) -> Option<String> {
        self.0.load().keys().next().cloned()
    }

    /// One secret for everything that this deployment signs for itself, made from all its keys.
    pub fn master(&self) -> [u8; 32] {
        let keys = self.0.load();
        let all: Vec<&[u8]> = keys.iter().flat_map(|(k, s)| [k.as_bytes(), &[0], s.as_bytes(), &[0]]).collect();
        crate::crypto::hmac_sha256(b"postern master v1", &all)
    }

    /// Verifies signature and times; nothing else.
    pub fn verify(&self, token: &str) -> Result<Claims, Denied> {
        #[derive(Deserialize)]
        struct Issuer {
            iss: String,
        }
        if token.is_empty() {
            return Err(Denied::Missing);
        }
        let payload = token.split('.').nth(1).ok_or(Denied::Malformed)?;
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| Denied::Malformed)?;
        let Issuer { iss } = serde_json::from_slice(&payload).map_err(|_| Denied::Malformed)?;
        let keys = self.0.load();
        let secret = keys.get(&iss).ok_or_else(|| Denied::UnknownKey(iss.chars().filter(|c| !c.is_control()).take(64).collect()))?;
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = LEEWAY_S;
        validation.validate_nbf = true;
        validation.set_required_spec_claims(&["exp"]);
        let verified = jsonwebtoken::decode::<Claims>(token, &DecodingKey::from_secret(secret.as_bytes()), &validation);
        verified.map(|data| data.claims).map_err(|e| match e.kind() {
            jsonwebtoken::errors::ErrorKind::ExpiredSignature => Denied::Expired,
            jsonwebtoken::errors::ErrorKind::ImmatureSignature => Denied::NotYetValid,
            jsonwebtoken::errors::ErrorKind::InvalidSignature => Denied::BadSignature,
            _ => Denied::Malformed,
        })
    }

    /// Verifies a token for joining the room that it names.
    pub fn verify_join(&self, token: &str) -> Result<Claims, Denied> {
        let claims = self.verify(token)?;
        if !claims.video.room_join {
            return Err(Denied::NoJoin);
        }
        if claims.video.room.is_empty() {
            return Err(Denied::NoRoom);
        }
        if claims.video.room.len() > NAME_MAX {
            return Err(Denied::RoomTooLong);
        }
        match claims.identity().len() {
            0 => Err(Denied::NoIdentity),
            1..=NAME_MAX => Ok(claims),
            _ => Err(Denied::IdentityTooLong),
        }
    }

    /// Signs claims with the key that `iss` names; `None` when there is no such key.
    pub fn sign(&self, claims: &Claims) -> Option<String> {
        let keys = self.0.load();
        let secret = keys.get(&claims.iss)?;
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret.as_bytes())).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::new(&BTreeMap::from([("devkey".to_owned(), "secret".to_owned())]))
    }

    #[allow(clippy::disallowed_methods, reason = "the JWT library reads this clock too")]
    fn now() -> u64 {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs()
    }

    fn claims() -> Claims {
        let video = VideoGrants { room_join: true, room: "r".into(), ..VideoGrants::default() };
        Claims { iss: "devkey".into(), sub: "alice".into(), exp: now() + 600, video, ..Claims::default() }
    }

    #[test]
    fn who_may_join() {
        let other = Keys::new(&BTreeMap::from([("devkey".to_owned(), "other".to_owned())]));
        let with = |change: fn(&mut Claims)| {
            let mut c = claims();
            change(&mut c);
            keys().sign(&c).expect("devkey is there")
        };
        let rows: &[(&str, String, Option<(u16, &str)>)] = &[
            ("good", with(|_| {}), None),
            ("jti instead of sub", with(|c| c.jti = std::mem::take(&mut c.sub)), None),
            ("within the leeway", with(|c| c.exp = now() - 30), None),
            ("expired", with(|c| c.exp = now() - 100), Some((401, "expired"))),
            ("early", with(|c| c.nbf = Some(now() + 600)), Some((401, "not valid yet"))),
            ("no join", with(|c| c.video.room_join = false), Some((401, "does not allow"))),
            ("no room", with(|c| c.video.room.clear()), Some((400, "no room"))),
            ("long room", with(|c| c.video.room = "x".repeat(257)), Some((400, "longer"))),
            ("no identity", with(|c| c.sub.clear()), Some((400, "no identity"))),
            ("long identity", with(|c| c.sub = "x".repeat(257)), Some((400, "longer"))),
            ("other secret", other.sign(&claims()).expect("a key"), Some((401, "signature"))),
            ("nothing", String::new(), Some((401, "no token"))),
            ("rubbish", "a.b.c".into(), Some((401, "no JWT"))),
            ("alg none", format!("eyJhbGciOiJub25lIn0.{}.", with(|_| {}).split('.').nth(1).expect("a payload")), Some((401, "no JWT"))),
        ];
        for (name, token, want) in rows {
            match (keys().verify_join(token), want) {
                (Ok(_), None) => {}
                (Err(denied), Some((status, text))) => {
                    assert_eq!(denied.status(), *status, "{name}: {denied}");
                    assert!(denied.to_string().contains(text), "{name}: {denied}");
                }
                (got, _) => panic!("{name}: {got:?}"),
            }
        }
        let unknown = Claims { iss: "nobody".into(), ..claims() };
        let signer = Keys::new(&BTreeMap::from([("nobody".to_owned(), "x".to_owned())]));
        assert_eq!(keys().verify_join(&signer.sign(&unknown).expect("a key")), Err(Denied::UnknownKey("nobody".into())));
    }
}
