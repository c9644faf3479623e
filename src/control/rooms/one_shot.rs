//! Participants that come with one offer and get one answer: WHIP publishers (RFC 9725) and WHEP players. They stand in a
//! room like any other; what a player hears is filled into the sections that it came with, as it is published.

use super::joining::permission_of;
use super::{Arrival, Caller, Dialogue, JoinError, Participant, Rooms};
use crate::base::id::{SessionId, Ssrc, TrackId};
use crate::control::auth::Claims;
use crate::control::tracks::{may_publish, publish_all, source_of};
use crate::engine::ice::Credentials;
use crate::wire::sdp::{Description, Kind, SdpError};
use livekit_protocol as proto;

/// Which way the media goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    Publish,
    /// Everybody's tracks, or those of one participant.
    Play {
        of: Option<String>,
    },
}

/// What a participant of one offer keeps.
pub(in crate::control) struct OneShot {
    /// Name of its session URL, not to be guessed.
    resource: String,
    purpose: Purpose,
    offer: Description,
    /// Sections that a player receives in: their sources stay the same whoever is heard in them.
    slots: Vec<Slot>,
}

pub(in crate::control) struct Slot {
    pub(in crate::control) mid: String,
    pub(in crate::control) ssrc: Ssrc,
    pub(in crate::control) rtx: Ssrc,
}

/// What answers an offer over HTTP.
pub struct Opened {
    pub session: SessionId,
    pub resource: String,
    pub sdp: String,
    /// Names the ICE generation.
    pub ufrag: String,
    pub ice_servers: Vec<proto::IceServer>,
}

/// A new ICE generation, as an SDP fragment says it.
pub struct Restarted {
    pub credentials: Credentials,
    pub candidates: Vec<String>,
}

impl Rooms {
    /// A publisher or player comes with its offer; `program` is its `User-Agent`.
    pub fn open(&mut self, claims: Claims, purpose: Purpose, caller: Caller, program: &str, offer: &str) -> Result<Opened, JoinError> {
        let offer = Description::parse(offer)?;
        let media = || offer.sections.iter().filter(|s| s.kind != Kind::Application && !s.is_rejected && !s.formats.is_empty());
        let permission = permission_of(&claims);
        let may = |kind: Kind| may_publish(Some(&permission), source_of(kind) as i32);
        let is_allowed = match purpose {
            Purpose::Publish => may(Kind::Audio) || may(Kind::Video),
            Purpose::Play { .. } => permission.can_subscribe,
        };
        if !is_allowed {
            return Err(JoinError::NotAllowed);
        }
        let is_fit = match purpose {
            Purpose::Publish => media().any(|s| s.direction.sends() && may(s.kind)),
            Purpose::Play { .. } => media().any(|s| s.direction.receives() && !s.direction.sends()),
        };
        if !is_fit {
            let way = if purpose == Purpose::Publish { "that is sent and may be" } else { "that only receives" };
            return Err(SdpError::NoUsable(way).into());
        }
        let settings = proto::ConnectionSettings { auto_subscribe: purpose != Purpose::Publish, ..Default::default() };
        let client = proto::ClientInfo { browser: program.to_owned(), ..Default::default() };
        let request = proto::JoinRequest { connection_settings: Some(settings), client_info: Some(client), ..Default::default() };
        let host = caller.host.clone();
        let arrival = Arrival { claims, request, caller, is_dual: false };
        let session = self.seat(arrival, Dialogue::OneShot, None)?;
        let resource = self.secrets.id_chars(22);
        let hears = purpose != Purpose::Publish;
        let receiving = offer.sections.iter().filter(|s| hears && s.kind != Kind::Application && s.direction.receives());
        let mids: Vec<String> = receiving.map(|s| s.mid.clone()).collect();
        let slots = mids.into_iter().map(|mid| self.slot(mid)).collect();
        if let Some(p) = self.participant(session) {
            p.one_shot = Some(OneShot { resource: resource.clone(), purpose, offer: offer.clone(), slots });
        }
        self.announce(session, false);
        self.subscribe_to_all(session);
        let answer = self.answer(session, &offer);
        self.publications_changed(session);
        let ice_servers = self.ice_servers(&host, session);
        let Some(answer) = answer else { return Err(JoinError::RoomMissing) };
        Ok(Opened { session, resource, sdp: answer.sdp, ufrag: answer.credentials.ufrag, ice_servers })
    }

    fn slot(&mut self, mid: String) -> Slot {
        let (ssrc, rtx) = self.ssrcs();
        Slot { mid, ssrc, rtx }
    }

    /// The session behind a URL, for the one whose token it is.
    pub fn one_shot(&mut self, claims: &Claims, resource: &str) -> Option<SessionId> {
        let room = self.rooms.get(&claims.video.room)?;
        let is_it = |p: &&Participant| p.one_shot.as_ref().is_some_and(|o| o.resource == resource);
        room.participants.iter().filter(|p| p.info.identity == claims.identity()).find(is_it).map(|p| p.session)
    }

    /// The ICE generation that a session is in: ours, and the client's.
    pub fn generation(&mut self, session: SessionId) -> Option<(String, String)> {
        let p = self.participant(session)?;
        Some((p.first.credentials.ufrag.clone(), p.first.remote_ufrag.clone()))
    }

    /// A client starts ICE anew (RFC 9725 §4.3.2).
    pub fn restart_ice(&mut self, session: SessionId, ufrag: &str, pwd: &str) -> Option<Restarted> {
        let p = self.participant(session)?;
        let one_shot = p.one_shot.as_mut()?;
        (one_shot.offer.ufrag, one_shot.offer.pwd) = (ufrag.to_owned(), pwd.to_owned());
        let offer = one_shot.offer.clone();
        let credentials = self.answer(session, &offer)?.credentials;
        Some(Restarted { credentials, candidates: self.around.candidates.lines() })
    }

    /// Gives a player what is published by now, in the sections that are free: its offer is answered once more, and only the
    /// data plane hears of it.
    pub(super) fn fill_slots(&mut self, session: SessionId) {
        let Some(offer) = self.participant(session).and_then(|p| p.one_shot.as_ref()).map(|o| o.offer.clone()) else { return };
        self.answer(session, &offer);
    }

    /// Makes tracks of what a publisher's offer sends.
    pub(super) fn publish_sections(&mut self, session: SessionId, offer: &Description) {
        let is_publisher = |p: &mut Participant| p.one_shot.as_ref().is_some_and(|o| o.purpose == Purpose::Publish);
        if !self.participant(session).is_some_and(is_publisher) {
            return;
        }
        let names: Vec<(TrackId, String)> = offer.sections.iter().map(|_| (TrackId(self.next_id()), self.secrets.id_chars(12))).collect();
        let tracks_max = self.around.tracks_per_participant;
        if let Some(p) = self.participant(session) {
            publish_all(p, offer, names.into_iter(), tracks_max);
        }
    }
}

impl Participant {
    /// A player may have asked for one participant alone.
    pub(super) fn wants_to_hear(&self, identity: &str) -> bool {
        match self.one_shot.as_ref().map(|o| &o.purpose) {
            Some(Purpose::Play { of: Some(of) }) => of == identity,
            Some(Purpose::Publish) => false,
            Some(Purpose::Play { of: None }) | None => true,
        }
    }

    pub(in crate::control) fn slots(&self) -> &[Slot] {
        self.one_shot.as_ref().map_or(&[], |o| &o.slots)
    }
}
