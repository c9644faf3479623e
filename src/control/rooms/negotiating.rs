//! Offers and answers: the client's, for what it publishes and, with a single peer connection, hears; and ours, for what
//! clients with two peer connections hear.

use super::{Dialogue, Down, Participant, Rooms, Subscription, Transport, mono};
use crate::base::id::{SessionId, TrackId};
use crate::control::tracks::{assign_subscriptions, bind_published, slots_of, subscribe, use_of, uses_of, want};
use crate::session::negotiate::{self, Candidates, Local, Use};
use crate::shard::mail::{Command, PathKind};
use crate::wire::rtp::Codec;
use crate::wire::sdp::{Description, Kind, SECTIONS_USED_MAX};
use livekit_protocol as proto;
use proto::leave_request::Action;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a client may take to answer an offer of ours.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);

/// The peer connection that a client with two hears over. We offer, it answers.
pub(in crate::control) struct Subscriber {
    pub(super) transport: Transport,
    /// All sections ever offered, in order; the first carries the channels.
    sections: Vec<Offered>,
    /// The offer that is out, and since when.
    awaits: Option<(u32, Instant)>,
    offers: u32,
    /// Something has changed since that offer.
    is_stale: bool,
}

struct Offered {
    mid: String,
    kind: Kind,
    codec: Option<Codec>,
    track: Option<TrackId>,
}

impl Subscriber {
    /// Whether an offer has waited too long for its answer.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.awaits.is_some_and(|(_, since)| now.duration_since(since) >= ANSWER_WITHIN)
    }

    pub(super) fn new(transport: Transport) -> Self {
        let channels = Offered { mid: "0".into(), kind: Kind::Application, codec: None, track: None };
        Self { transport, sections: vec![channels], awaits: None, offers: 0, is_stale: false }
    }
}

/// Our addresses, without those of ways that are left out.
fn candidates_for(all: &Candidates, least: PathKind) -> Candidates {
    let keeps_udp = least == PathKind::Udp;
    Candidates { udp: if keeps_udp || all.tcp.is_empty() { all.udp.clone() } else { Vec::new() }, tcp: all.tcp.clone() }
}

/// A section for each subscription: a free one of its kind, else a new one. Whether that changed anything.
fn assign_offered(p: &mut Participant) -> bool {
    let Some(subscriber) = &mut p.subscriber else { return false };
    let mut has_changed = false;
    for section in &mut subscriber.sections {
        if section.track.is_some() && carried(&p.subscriptions, section).is_none() {
            section.track = None;
            has_changed = true;
        }
    }
    for waiting in p.subscriptions.iter_mut().filter(|s| s.waits_for_section()) {
        let free = subscriber.sections.iter().position(|s| s.kind == waiting.kind && s.track.is_none());
        if free.is_none() && subscriber.sections.len() >= SECTIONS_USED_MAX {
            continue;
        }
        let at = free.unwrap_or_else(|| {
            let mid = subscriber.sections.len().to_string();
            subscriber.sections.push(Offered { mid, kind: waiting.kind, codec: None, track: None });
            subscriber.sections.len() - 1
        });
        let section = &mut subscriber.sections[at];
        (section.track, section.codec) = (Some(waiting.track), waiting.codec);
        waiting.mid = Some(section.mid.clone());
        has_changed = true;
    }
    has_changed
}

/// What a section of our offer carries.
fn carried<'a>(subscriptions: &'a [Subscription], section: &Offered) -> Option<&'a Subscription> {
    subscriptions.iter().find(|s| Some(s.track) == section.track && s.mid.as_ref() == Some(&section.mid) && s.is_allowed)
}

/// What each section of our offer is for.
fn offered_uses(p: &Participant, subscriber: &Subscriber) -> Vec<Use> {
    let of = |section: &Offered| match section.kind {
        Kind::Application => Use::Data,
        Kind::Audio | Kind::Video => carried(&p.subscriptions, section).map_or(Use::Idle, use_of),
    };
    subscriber.sections.iter().map(of).collect()
}

impl Rooms {
    /// Answers an offer: binds what is published, assigns what is subscribed, tells the data plane.
    pub fn offer(&mut self, session: SessionId, description: &proto::SessionDescription) {
        let offer = match Description::parse(&description.sdp) {
            Ok(offer) => offer,
            Err(error) => {
                tracing::warn!(session = session.0, %error, "an offer cannot be answered");
                return self.expel(session, proto::DisconnectReason::MediaFailure, Action::Disconnect);
            }
        };
        let Some(answer) = self.answer(session, &offer) else { return };
        let Some(p) = self.participant(session) else { return };
        // With two peer connections its own offers carry nothing of ours.
        let mid_to_track_id = if p.subscriber.is_none() { p.carried_sids() } else { HashMap::new() };
        let answer = proto::SessionDescription { r#type: "answer".into(), sdp: answer.sdp, id: description.id, mid_to_track_id };
        self.tell(session, Down::Answer(answer));
        self.publications_changed(session);
        self.negotiate_hearing(session);
    }

    /// Takes an offer up and tells the data plane; our answer, and which tracks came and went with it.
    pub(super) fn answer(&mut self, session: SessionId, offer: &Description) -> Option<Answer> {
        let least = self.least_way(session);
        let name = self.places.get(&session)?.clone();
        let (room_id, playout) = self.rooms.get(&name).map(|r| (r.id, r.playout))?;
        let workers = self.workers_of(&name);
        let worker = self.participant(session)?.worker;
        let fresh = self.credentials(worker);
        self.publish_sections(session, offer);
        let p = self.participant(session)?;
        if !p.first.remote_ufrag.is_empty() && p.first.remote_ufrag != offer.ufrag {
            p.first.credentials = fresh;
        }
        p.first.remote_ufrag.clone_from(&offer.ufrag);
        p.first.descriptions += 1;
        p.described_at.get_or_insert_with(mono);
        p.sections.take(offer.sections.len(), slots_of(offer));
        let (published, unpublished) = bind_published(p, offer);
        let refused = if p.subscriber.is_none() { assign_subscriptions(p, offer) } else { Vec::new() };
        let uses = uses_of(p, offer);
        let (credentials, version, key) = (p.first.credentials.clone(), p.first.descriptions, p.session);
        let local = Local {
            credentials: &credentials,
            fingerprint: &self.around.fingerprint,
            candidates: &candidates_for(&self.around.candidates, least),
            session_id: key.0,
            version,
            playout,
        };
        let (sdp, plan) = negotiate::answer(offer, &local, &uses);
        for (track, worker) in unpublished.iter().flat_map(|t| workers.iter().map(move |w| (t, w))) {
            self.mail(*worker, Command::Unpublish { room: room_id, track: *track });
        }
        self.mail(worker, Command::Apply { session: key, plan: Box::new(plan) });
        for track in published {
            self.route_published(key, track);
        }
        self.cannot_decode(key, refused);
        self.demand_backups(key);
        self.route_assigned(key);
        self.unpublished(key, &unpublished);
        self.backups_published(key);
        Some(Answer { sdp, credentials })
    }

    /// Has the data plane send what has a section now.
    pub(super) fn route_assigned(&mut self, session: SessionId) {
        let mail = Arc::clone(&self.around.mail);
        let Some(room) = self.room_of(session) else { return };
        let room_id = room.id;
        let Some(p) = room.participants.iter_mut().find(|p| p.sessions().any(|s| s == session)) else { return };
        let (worker, ear) = (p.worker, p.ear());
        let mut routed = Vec::new();
        for s in p.subscriptions.iter_mut().filter(|s| s.mid.is_some() && s.is_allowed && !s.is_routed) {
            s.is_routed = true;
            mail(worker, subscribe(room_id, ear, s));
            mail(worker, want(room_id, ear, s));
            routed.push((s.publisher, s.track, s.layer_wanted()));
        }
        for (publisher, track, layer) in routed {
            self.heard(publisher, track, layer);
        }
    }

    /// Sees to it that what a participant subscribes to gets its sections.
    pub(super) fn negotiate_hearing(&mut self, session: SessionId) {
        let Some(p) = self.participant(session) else { return };
        match (&p.subscriber, p.dialogue) {
            (Some(_), _) => self.offer_tracks(session),
            (None, Dialogue::Signal) => self.ask_for_sections(session),
            (None, Dialogue::OneShot) => self.fill_slots(session),
        }
    }

    /// Tells a client which tracks it has no codec for.
    fn cannot_decode(&mut self, session: SessionId, tracks: Vec<String>) {
        for track_sid in tracks {
            let err = proto::SubscriptionError::SeCodecUnsupported as i32;
            self.tell(session, Down::SubscriptionResponse(proto::SubscriptionResponse { track_sid, err }));
        }
    }

    // ---- the second peer connection -------------------------------------------------------------------------------

    /// Offers a client what it subscribes to, unless nothing has changed or an offer is still out.
    pub(super) fn offer_tracks(&mut self, session: SessionId) {
        let Some(p) = self.participant(session) else { return };
        let Some(subscriber) = &mut p.subscriber else { return };
        if subscriber.awaits.is_some() {
            subscriber.is_stale = true;
            return;
        }
        let is_first = subscriber.offers == 0;
        if assign_offered(p) || is_first {
            self.send_offer(session);
        }
    }

    /// A client is back: its second peer connection looks for a way anew (RFC 8445 §9).
    pub(super) fn restart_subscriber(&mut self, session: SessionId) {
        let Some(worker) = self.participant(session).map(|p| p.worker) else { return };
        let fresh = self.credentials(worker);
        let Some(p) = self.participant(session) else { return };
        let Some(subscriber) = &mut p.subscriber else { return };
        if !subscriber.transport.remote_ufrag.is_empty() {
            subscriber.transport.credentials = fresh;
        }
        assign_offered(p);
        self.send_offer(session);
    }

    fn send_offer(&mut self, session: SessionId) {
        let least = self.least_way(session);
        let candidates = candidates_for(&self.around.candidates, least);
        let fingerprint = self.around.fingerprint.clone();
        let playout = self.room_of(session).and_then(|r| r.playout);
        let Some(p) = self.participant(session) else { return };
        let Some(mut subscriber) = p.subscriber.take() else { return };
        subscriber.offers += 1;
        subscriber.awaits = Some((subscriber.offers, mono()));
        subscriber.is_stale = false;
        subscriber.transport.descriptions += 1;
        let (credentials, id) = (subscriber.transport.credentials.clone(), subscriber.offers);
        let sections: Vec<_> = subscriber.sections.iter().map(|s| negotiate::section(&s.mid, s.kind, s.codec)).collect();
        let uses = offered_uses(p, &subscriber);
        let local = Local {
            credentials: &credentials,
            fingerprint: &fingerprint,
            candidates: &candidates,
            session_id: subscriber.transport.session.0,
            version: subscriber.transport.descriptions,
            playout,
        };
        let sdp = negotiate::offer(&sections, &local, &uses);
        let mid_to_track_id = p.carried_sids();
        let key = p.session;
        p.subscriber = Some(subscriber);
        self.tell(key, Down::Offer(proto::SessionDescription { r#type: "offer".into(), sdp, id, mid_to_track_id }));
    }

    /// A client's answer to our offer.
    pub fn answered(&mut self, session: SessionId, description: &proto::SessionDescription) {
        let playout = self.room_of(session).and_then(|r| r.playout);
        let Some(p) = self.participant(session) else { return };
        let (key, worker) = (p.session, p.worker);
        let Some(subscriber) = &mut p.subscriber else { return };
        // Clients of some age do not say which offer they answer.
        if subscriber.awaits.is_none() || (description.id != 0 && subscriber.awaits.map(|(id, _)| id) != Some(description.id)) {
            return tracing::debug!(session = session.0, id = description.id, "an answer to no offer");
        }
        let answer = match Description::parse(&description.sdp) {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(session = session.0, %error, "an answer is not understood");
                return self.expel(key, proto::DisconnectReason::MediaFailure, Action::Disconnect);
            }
        };
        subscriber.awaits = None;
        subscriber.transport.remote_ufrag.clone_from(&answer.ufrag);
        let (credentials, ear, is_stale) = (subscriber.transport.credentials.clone(), subscriber.transport.session, subscriber.is_stale);
        let Some(subscriber) = p.subscriber.as_ref() else { return };
        let uses = offered_uses(p, subscriber);
        let local =
            Local { credentials: &credentials, fingerprint: "", candidates: &Candidates::default(), session_id: 0, version: 0, playout };
        let plan = negotiate::accept(&answer, &local, &uses);
        let taken: Vec<TrackId> = plan.send.iter().map(|s| s.track).collect();
        let offered = |track: TrackId| uses.iter().any(|u| matches!(u, Use::Send { track: t, .. } if *t == track));
        // What it was offered and did not take it cannot decode.
        let is_refused = |s: &Subscription| s.mid.is_some() && offered(s.track) && !taken.contains(&s.track);
        p.subscriptions.iter_mut().filter(|s| is_refused(s)).for_each(Subscription::fall_back);
        let refused = p.subscriptions.extract_if(.., |s| is_refused(s)).map(|s| s.sid).collect();
        self.mail(worker, Command::Apply { session: ear, plan: Box::new(plan) });
        self.route_assigned(key);
        self.cannot_decode(key, refused);
        self.demand_backups(key);
        // A backup may be there already.
        let waits = self.participant(key).is_some_and(|p| p.subscriptions.iter().any(Subscription::waits_for_section));
        if is_stale || waits {
            self.offer_tracks(key);
        }
    }
}

/// What an offer became.
pub(super) struct Answer {
    pub(super) sdp: String,
    pub(super) credentials: crate::engine::ice::Credentials,
}
