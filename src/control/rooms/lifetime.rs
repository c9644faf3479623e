//! What time and the network bring: transports that come up, fall silent and end; rooms that stay empty; what is told late.

use super::absence::KEPT_FOR;
use super::{Dialogue, Down, Participant, Rooms, joining::leave, mono, room_info};
use crate::base::id::SessionId;
use crate::engine::srtp::Profile;
use crate::session::End;
use crate::shard::mail::PathKind;
use livekit_protocol as proto;
use proto::leave_request::Action;
use std::time::{Duration, Instant};

/// How long a participant without a signalling connection stays.
const SIGNAL_LOST_FOR: Duration = Duration::from_secs(15);
/// How long a participant may take until its media is connected.
const ACTIVE_WITHIN: Duration = Duration::from_secs(60);
/// From so many participants on, news about those who do not publish come together.
pub(super) const BIG_ROOM: usize = 30;
pub(super) const LATE_NEWS_INTERVAL: Duration = Duration::from_secs(3);
/// Participants told of in one message at most.
const NEWS_AT_ONCE: usize = 200;
/// A way that fails so often within such a time is left out for a while.
const FAILURES: usize = 2;
const FAILURES_WITHIN: Duration = Duration::from_secs(60);
const LEFT_OUT_FOR: Duration = Duration::from_secs(600);
/// A change of ways so long after a silence has nothing to do with it.
const SILENT_LATELY: Duration = Duration::from_secs(30);

/// Which ways failed somebody lately.
#[derive(Default)]
pub(super) struct Unstable {
    failures: Vec<(Instant, PathKind)>,
    /// Nothing less reliable than this is offered until then.
    least: Option<(PathKind, Instant)>,
}

impl Unstable {
    /// A way went silent. What to offer from now on, if that changes.
    fn failed(&mut self, now: Instant, way: PathKind) -> Option<PathKind> {
        self.failures.retain(|(at, _)| now.duration_since(*at) < FAILURES_WITHIN);
        self.failures.push((now, way));
        let least = match way {
            PathKind::Udp | PathKind::RelayUdp => PathKind::Tcp,
            PathKind::Tcp | PathKind::RelayTcp => PathKind::RelayTls,
            PathKind::RelayTls => return None,
        };
        let same = self.failures.iter().filter(|(_, w)| rank(*w) == rank(way)).count();
        if same < FAILURES {
            return None;
        }
        self.failures.clear();
        self.least = Some((least, now + LEFT_OUT_FOR));
        Some(least)
    }

    /// Whether there is anything left to remember.
    fn is_known(&mut self, now: Instant) -> bool {
        self.failures.retain(|(at, _)| now.duration_since(*at) < FAILURES_WITHIN);
        !self.failures.is_empty() || self.least(now) != PathKind::Udp
    }

    fn least(&self, now: Instant) -> PathKind {
        self.least.filter(|(_, until)| *until > now).map_or(PathKind::Udp, |(way, _)| way)
    }
}

/// How much stands between a client and us.
fn rank(way: PathKind) -> u8 {
    match way {
        PathKind::Udp | PathKind::RelayUdp => 0,
        PathKind::Tcp | PathKind::RelayTcp => 1,
        PathKind::RelayTls => 2,
    }
}

impl Rooms {
    pub(super) fn went_live(&mut self, session: SessionId, profile: Profile) {
        tracing::info!(session = session.0, srtp = profile.name(), "media is connected");
        let Some(p) = self.participant(session).filter(|p| !p.is_active()) else { return };
        p.info.state = proto::participant_info::State::Active as i32;
        // Who comes without anything to send or hear connects when there is something.
        let (key, info, since) = (p.session, p.info.clone(), p.described_at.unwrap_or(p.joined_at));
        self.around.gauges.of_participants.joined(mono().duration_since(since));
        self.announce(key, true);
        if let Some(name) = self.places.get(&key).cloned() {
            self.event("participant_joined", &name, Some(&info), None);
            for track in &info.tracks {
                self.event("track_published", &name, Some(&info), Some(track));
            }
        }
    }

    /// Nothing has come from a transport for some seconds. While signalling works, its client is asked to look for another
    /// way: it would wait much longer by itself.
    pub(super) fn fell_silent(&mut self, session: SessionId, was_busy: bool) {
        let Some(p) = self.participant(session) else { return };
        // Whoever has stopped sending on purpose is told of when everybody would be.
        if was_busy && !p.tracks.iter().any(|t| t.mid.is_some() && !t.info.muted) {
            return;
        }
        let (key, way, is_reached) = (p.session, p.path, p.signal.is_some());
        p.silent = way.map(|way| (way, mono()));
        tracing::info!(session = session.0, path = way.map(PathKind::name), is_reached, "media is silent");
        if is_reached {
            self.resume_soon(key, proto::DisconnectReason::ConnectionTimeout);
        }
    }

    /// A client has found a way. Where one fell silent before and this one is less direct, that one has failed; where it is the
    /// same, the network was away for a moment.
    pub(super) fn way_found(&mut self, session: SessionId, way: PathKind) {
        let Some(p) = self.participant(session) else { return };
        let identity = p.info.identity.clone();
        let recent = p.silent.take().filter(|(_, at)| mono().duration_since(*at) < SILENT_LATELY);
        let Some((silent, _)) = recent.filter(|(silent, _)| rank(*silent) < rank(way)) else { return };
        if let Some(room) = self.room_of(session)
            && let Some(least) = room.unstable.entry(identity).or_default().failed(mono(), silent)
        {
            tracing::info!(session = session.0, path = silent.name(), from_now_on = least.name(), "a way proves unstable");
        }
    }

    /// The least reliable way that is offered to a participant.
    pub(super) fn least_way(&mut self, session: SessionId) -> PathKind {
        let identity = self.participant(session).map(|p| p.info.identity.clone());
        let unstable = self.room_of(session).zip(identity).and_then(|(room, identity)| room.unstable.get(&identity));
        unstable.map_or(PathKind::Udp, |u| u.least(mono()))
    }

    /// A client asks to be treated as if something had happened: how SDKs and apps test that they come back.
    pub fn simulate(&mut self, session: SessionId, request: &proto::SimulateScenario) {
        use proto::simulate_scenario::Scenario;
        let now = mono();
        match request.scenario {
            Some(Scenario::NodeFailure(true)) => self.remove(session, proto::DisconnectReason::UnknownReason),
            Some(Scenario::ServerLeave(true)) => self.expel(session, proto::DisconnectReason::ServerShutdown, Action::Disconnect),
            Some(Scenario::Migration(true)) => self.resume_soon(session, proto::DisconnectReason::Migration),
            Some(Scenario::LeaveRequestFullReconnect(true)) => {
                self.expel(session, proto::DisconnectReason::UnknownReason, Action::Reconnect);
            }
            Some(Scenario::SwitchCandidateProtocol(protocol)) => {
                let least = match proto::CandidateProtocol::try_from(protocol) {
                    Ok(proto::CandidateProtocol::Tcp) => PathKind::Tcp,
                    Ok(proto::CandidateProtocol::Tls) => PathKind::RelayTls,
                    Ok(proto::CandidateProtocol::Udp) | Err(_) => PathKind::Udp,
                };
                let identity = self.participant(session).map(|p| p.info.identity.clone()).unwrap_or_default();
                if let Some(room) = self.room_of(session) {
                    room.unstable.entry(identity).or_default().least = Some((least, now + LEFT_OUT_FOR));
                }
                self.resume_soon(session, proto::DisconnectReason::ConnectionTimeout);
            }
            Some(Scenario::DisconnectSignalOnResume(true) | Scenario::DisconnectSignalOnResumeNoMessages(true)) => {
                self.drop_signal(session);
            }
            _ => tracing::debug!(session = session.0, "a scenario that is not simulated"),
        }
    }

    /// Asks a client to come back over a new signalling connection, and to look for a way for its media anew.
    fn resume_soon(&mut self, session: SessionId, reason: proto::DisconnectReason) {
        self.tell(session, Down::Leave(leave(reason, Action::Resume)));
        self.drop_signal(session);
    }

    fn drop_signal(&mut self, session: SessionId) {
        if let Some(p) = self.participant(session)
            && p.signal.take().is_some()
        {
            p.signal_lost_at = Some(mono());
        }
    }

    pub(super) fn media_ended(&mut self, session: SessionId, end: End, detail: &str) {
        let reason = match end {
            End::HandshakeFailed | End::FingerprintMismatch | End::DataStalled | End::Panicked => proto::DisconnectReason::MediaFailure,
            End::PeerClosed => proto::DisconnectReason::ClientInitiated,
        };
        if end == End::Panicked {
            tracing::error!(session = session.0, detail, "a session failed by a fault of the server's and was ended; please report it");
        }
        tracing::info!(session = session.0, ?end, detail, "media ended");
        self.absent_ended(session);
        self.expel(session, reason, Action::Reconnect);
    }

    /// What time brings: participants whose signalling did not come back, tokens to renew, news that waited, empty rooms.
    pub fn tick(&mut self) {
        let now = mono();
        self.tick_rooms(now);
        self.weigh();
        let mut gone = Vec::new();
        let mut renew = Vec::new();
        for p in self.rooms.values().flat_map(|r| &r.participants) {
            if let Some(reason) = overdue(p, now) {
                gone.push((p.session, reason));
            } else if p.token_due <= now && p.signal.is_some() {
                renew.push(p.session);
            }
        }
        for (session, reason) in gone {
            if reason == proto::DisconnectReason::SignalClose {
                self.drop_out(session, reason);
            } else {
                self.expel(session, reason, Action::Reconnect);
            }
        }
        self.forget_long_absent(now);
        for session in renew {
            self.refresh_token(session);
        }
        self.tell_heard(now);
        self.tick_quality(now);
        self.tick_rpcs(now);
        self.note_leaving(false);
    }

    fn tick_rooms(&mut self, now: Instant) {
        let (mut changed, mut news, mut over) = (Vec::new(), Vec::new(), Vec::new());
        for (name, room) in &mut self.rooms {
            room.departed.retain(|(at, _)| now.duration_since(*at) < 2 * SIGNAL_LOST_FOR + KEPT_FOR);
            room.unstable.retain(|_, u| u.is_known(now));
            if std::mem::take(&mut room.has_changed) {
                changed.push((name.clone(), room_info(room)));
            }
            if room.late_news_due.is_some_and(|at| at <= now) {
                room.late_news_due = None;
                news.push((name.clone(), std::mem::take(&mut room.late_news)));
            }
            let stays = if room.was_joined { room.info.departure_timeout } else { room.info.empty_timeout };
            let is_awaited = !room.absent.is_empty();
            if !is_awaited && room.empty_since.is_some_and(|at| now.duration_since(at) >= Duration::from_secs(u64::from(stays))) {
                over.push(name.clone());
            }
        }
        for (name, info) in changed {
            self.broadcast(&name, SessionId(0), &Down::RoomUpdate(proto::RoomUpdate { room: Some(info) }));
        }
        for (name, news) in news {
            let participants: Vec<proto::ParticipantInfo> = news.into_values().collect();
            for some in participants.chunks(NEWS_AT_ONCE) {
                let update = proto::ParticipantUpdate { participants: some.to_vec() };
                self.broadcast(&name, SessionId(0), &Down::Update(update));
            }
        }
        for name in over {
            self.finish(&name);
        }
    }

    /// An empty room is over.
    pub(super) fn finish(&mut self, name: &str) {
        self.forget_all_absent(name);
        self.event("room_finished", name, None, None);
        self.note_room("room_finished", name);
        self.rooms.remove(name);
    }
}

/// Why a participant's time is up.
fn overdue(p: &Participant, now: Instant) -> Option<proto::DisconnectReason> {
    if p.resuming.is_none() && p.signal_lost_at.is_some_and(|at| now.duration_since(at) >= SIGNAL_LOST_FOR) {
        return Some(proto::DisconnectReason::SignalClose);
    }
    if p.subscriber.as_ref().is_some_and(|s| s.is_overdue(now)) && p.signal.is_some() {
        return Some(proto::DisconnectReason::MediaFailure);
    }
    // A client may stay without media for as long as it signals and has nothing to send or hear.
    let is_late = !p.is_active() && now.duration_since(p.joined_at) >= ACTIVE_WITHIN;
    (is_late && p.dialogue == Dialogue::OneShot).then_some(proto::DisconnectReason::JoinFailure)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_that_fail_twice_in_a_minute_are_left_out_for_a_while() {
        let (start, mut unstable) = (mono(), Unstable::default());
        let at = |s: u64| start + Duration::from_secs(s);
        assert_eq!(unstable.failed(at(0), PathKind::Udp), None);
        assert_eq!(unstable.failed(at(61), PathKind::Udp), None, "the first one is forgotten");
        assert_eq!(unstable.failed(at(90), PathKind::RelayUdp), Some(PathKind::Tcp));
        assert_eq!(unstable.least(at(91)), PathKind::Tcp);
        assert_eq!(unstable.failed(at(100), PathKind::Tcp), None);
        assert_eq!(unstable.failed(at(110), PathKind::RelayTcp), Some(PathKind::RelayTls));
        assert_eq!(unstable.least(at(111)), PathKind::RelayTls);
        assert_eq!(unstable.failed(at(112), PathKind::RelayTls), None, "there is nothing better");
        assert_eq!(unstable.least(at(800)), PathKind::Udp);
    }
}
