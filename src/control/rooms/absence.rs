//! Participants whose network is away for longer than a moment. Nobody sees them any more, but they keep their transports
//! for a while: who is back soon resumes, which is quicker than joining anew and keeps what was published and subscribed.

use super::permissions::is_allowed;
use super::quality::{Samples, Scores};
use super::{Caller, Dialogue, Down, Hearing, Participant, Rooms, backup, joining::leave, mono};
use crate::base::id::{SessionId, TrackId};
use crate::control::auth::Claims;
use crate::shard::mail::Command;
use livekit_protocol as proto;
use proto::leave_request::Action;
use std::time::{Duration, Instant};

/// How long one who has dropped out may still resume.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(60);

/// One who has dropped out.
pub(super) struct Absent {
    since: Instant,
    pub(super) participant: Participant,
}

impl Rooms {
    /// Nothing has been heard of a participant for a while: it leaves, but may resume. Who was never there, or has nothing to
    /// resume over, is taken out for good.
    pub(super) fn drop_out(&mut self, session: SessionId, reason: proto::DisconnectReason) {
        let may_return = self.participant(session).is_some_and(|p| p.is_active() && p.dialogue == Dialogue::Signal && p.resuming.is_none());
        if !may_return {
            return self.expel(session, reason, Action::Reconnect);
        }
        self.tell(session, Down::Leave(leave(reason, Action::Reconnect)));
        let hearers = self.hearers_of(session);
        let Some((name, mut participant)) = self.take_out(session, reason) else { return };
        self.note_left(&name, &participant, reason, false);
        // A browser sees a track come back in its section only when it saw it end there.
        for hearer in hearers {
            self.sections_freed(hearer);
        }
        participant.signal = None;
        for session in participant.sessions() {
            self.mail(participant.worker, Command::StepOut { session });
        }
        let identity = participant.info.identity.clone();
        self.forget_absent(&name, &identity);
        let absent_max = self.around.rooms.participants_max as usize;
        let Some(room) = self.rooms.get_mut(&name) else { return self.close_transports(&participant) };
        room.absent.push(Absent { since: mono(), participant });
        let too_many = room.absent.len() > absent_max;
        if let Some(oldest) = room.absent.first().filter(|_| too_many).map(|a| a.participant.info.identity.clone()) {
            self.forget_absent(&name, &oldest);
        }
    }

    /// Puts back one who has dropped out, as its token and its sid say; `None` when it has to join anew.
    pub(super) fn call_back(&mut self, claims: &Claims, sid: &str, caller: &Caller) -> Option<SessionId> {
        let name = &claims.video.room;
        let participants_max = self.around.rooms.participants_max;
        let room = self.rooms.get_mut(name)?;
        let at = room.absent.iter().position(|a| a.participant.sid == sid && a.participant.info.identity == claims.identity())?;
        if room.is_revoked(claims.identity(), claims.nbf) || room.participants.len() >= room.participants_max(participants_max) {
            return None;
        }
        let mut p = room.absent.remove(at).participant;
        p.address = caller.address;
        // What was before stands in the entry of its leaving.
        (p.came_at, p.samples) = (mono(), Samples::default());
        room.departed.retain(|(_, info)| info.sid != sid);
        (room.has_changed, room.empty_since) = (true, None);
        // What it heard and is still there goes on where it was; the rest comes as to a newcomer.
        p.subscriptions.retain_mut(|s| {
            let publisher = room.participants.iter().find(|o| o.session == s.publisher);
            let publisher = publisher.filter(|o| o.tracks.iter().any(|t| t.is_published() && t.info.sid == s.sid));
            s.is_routed = false;
            publisher.into_iter().for_each(|o| backup::follow(s, &o.tracks));
            s.is_allowed = publisher.is_some_and(|o| is_allowed(o.listeners.as_ref(), &p.sid, &p.info.identity, &s.sid));
            if !s.is_allowed {
                s.mid = None;
            }
            publisher.is_some()
        });
        p.info.state = proto::participant_info::State::Active as i32;
        p.info.disconnect_reason = 0;
        (p.signal_lost_at, p.silent, p.scores) = (Some(mono()), None, Scores::default());
        p.tracks.iter_mut().for_each(|t| t.hearing = Hearing::Nobody);
        let published: Vec<TrackId> = p.tracks.iter().filter(|t| t.mid.is_some()).map(|t| t.id).collect();
        let (key, worker, info) = (p.session, p.worker, p.info.clone());
        let sessions: Vec<SessionId> = p.sessions().collect();
        room.participants.push(p);
        for session in sessions {
            self.mail(worker, Command::StepIn { session });
        }
        for track in published {
            self.route_published(key, track);
        }
        self.spread(name);
        tracing::info!(room = %name, session = key.0, "a participant is back");
        self.event("participant_joined", name, Some(&info), None);
        self.note_of(key, "returned", |p, entry| crate::control::audit::Entry { address: p.address, ..entry });
        self.announce(key, false);
        self.publications_changed(key);
        self.data_tracks_changed(key);
        self.subscribe_to_all(key);
        self.route_assigned(key);
        Some(key)
    }

    /// Those whose sections carry something of a participant.
    fn hearers_of(&mut self, session: SessionId) -> Vec<SessionId> {
        let Some(publisher) = self.participant(session).map(|p| p.session) else { return Vec::new() };
        let hears = |p: &&Participant| p.subscriptions.iter().any(|s| s.publisher == publisher && s.mid.is_some());
        self.room_of(session).map(|r| r.participants.iter().filter(hears).map(|p| p.session).collect()).unwrap_or_default()
    }

    /// A transport of one who has dropped out has ended by itself.
    pub(super) fn absent_ended(&mut self, session: SessionId) {
        let Some(name) = self.places.get(&session).cloned() else { return };
        let identity = self.rooms.get(&name).into_iter().flat_map(|r| &r.absent);
        let identity = identity.map(|a| &a.participant).find(|p| p.sessions().any(|s| s == session)).map(|p| p.info.identity.clone());
        if let Some(identity) = identity {
            self.forget_absent(&name, &identity);
        }
    }

    /// One who has dropped out is not waited for any longer. `false` when there is none.
    pub(super) fn forget_absent(&mut self, room: &str, identity: &str) -> bool {
        self.forget_absent_if(room, |a| a.participant.info.identity == identity)
    }

    pub(super) fn forget_long_absent(&mut self, now: Instant) {
        let rooms = self.rooms.iter().filter(|(_, r)| !r.absent.is_empty());
        let names: Vec<String> = rooms.map(|(name, _)| name.clone()).collect();
        for name in names {
            self.forget_absent_if(&name, |a| now.duration_since(a.since) >= KEPT_FOR);
        }
    }

    pub(super) fn forget_all_absent(&mut self, room: &str) {
        self.forget_absent_if(room, |_| true);
    }

    fn forget_absent_if(&mut self, room: &str, is_over: impl Fn(&Absent) -> bool) -> bool {
        let Some(room) = self.rooms.get_mut(room) else { return false };
        let over: Vec<Absent> = room.absent.extract_if(.., |a| is_over(a)).collect();
        for gone in &over {
            self.close_transports(&gone.participant);
        }
        !over.is_empty()
    }

    /// The data plane may forget a participant's transports.
    pub(super) fn close_transports(&mut self, gone: &Participant) {
        for session in gone.sessions() {
            self.places.remove(&session);
            self.seats.remove(&session);
            self.mail(gone.worker, Command::Close { session });
        }
    }
}
