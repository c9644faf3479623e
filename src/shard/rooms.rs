//! What the control plane commands about sessions and rooms, and the rooms' messages.

use super::counters::Counter;
use super::mail::{Command, Effect, Parcel, Report};
use super::{Place, Shard, Timer};
use crate::base::id::{RoomId, SessionId};
use crate::base::time::{Duration, Now};
use crate::engine::sctp;
use crate::room::Member;
use crate::session::Session;
use crate::wire::data_packet::{self, Delivery, SERVER_IDENTITIES};
use crate::wire::data_track;
use std::collections::HashMap;

/// Longest message to the server itself, bytes: the answer to a call. And how many a participant may send in a second.
const FOR_SERVER_MAX: usize = 20 * 1024;
const FOR_SERVER_A_SECOND: u32 = 50;

impl Shard {
    pub fn handle_command(&mut self, now: Now, command: Command) {
        self.guarded(|shard| shard.command(now, command));
    }

    fn command(&mut self, now: Now, command: Command) {
        match command {
            Command::Open { session, room, credentials, identity, sid, can_publish_data, hears_data, opens_channels } => {
                let rtcp_ssrc = self.secrets.u64() as u32 | 1;
                let (anchor, own) = (self.config.anchor, self.config.identity.clone());
                let mut transport = Session::new(now.mono, session, anchor, own, &credentials, rtcp_ssrc);
                if opens_channels {
                    transport.open_channels();
                }
                self.sessions.insert(session, Box::new(transport));
                self.table.add_ufrag(&credentials.ufrag, session);
                self.places.insert(
                    session,
                    Place {
                        room,
                        sid: sid.clone(),
                        ufrags: vec![credentials.ufrag],
                        last_message: 0,
                        data_routes: HashMap::new(),
                        stepped_out: None,
                        told_server: (now.mono, 0),
                    },
                );
                let member = Member { session, identity, sid, can_publish_data, hears_data, is_live: false };
                self.rooms.entry(room).or_default().join(member);
                self.counters.count(Counter::SessionsOpened);
                self.load.set_sessions(self.sessions.len());
                self.arm_session(session);
            }
            Command::Permit { session, can_publish_data } => {
                if let Some(room) = self.places.get(&session).and_then(|p| self.rooms.get_mut(&p.room)) {
                    room.permit(session, can_publish_data);
                }
            }
            Command::Silence { track, is_silenced } => {
                let room = self.rooms.iter_mut().find(|(_, r)| r.publication(track).is_some());
                let Some((&id, room)) = room.filter(|_| is_silenced != self.silenced.contains(&track)) else { return };
                if is_silenced {
                    self.silenced.insert(track);
                } else {
                    self.silenced.remove(&track);
                    for (to, word) in room.restart(track) {
                        self.say(to, id, track, word);
                    }
                }
            }
            Command::RouteData { publisher, handle, hearers } => {
                if let Some(place) = self.places.get_mut(&publisher) {
                    if hearers.is_empty() {
                        place.data_routes.remove(&handle);
                    } else {
                        place.data_routes.insert(handle, hearers);
                    }
                }
            }
            Command::Send { room, delivery, bytes } => self.pass_data(now, room, None, delivery, &bytes),
            Command::Apply { session: id, plan } => {
                self.at_work = Some(id);
                if let (Some(session), Some(place)) = (self.sessions.get_mut(&id), self.places.get_mut(&id)) {
                    if !place.ufrags.contains(&plan.credentials.ufrag) {
                        // An ICE restart: the generation before the last is over.
                        while place.ufrags.len() > 1 {
                            let old = place.ufrags.remove(0);
                            self.table.remove_ufrag(&old);
                        }
                        self.table.add_ufrag(&plan.credentials.ufrag, id);
                        place.ufrags.push(plan.credentials.ufrag.clone());
                    }
                    session.apply(now.mono, *plan);
                    self.arm_session(id);
                }
            }
            Command::Publish { room: id, session, track, is_video } => {
                if let Some(room) = self.rooms.get_mut(&id) {
                    room.publish(track, session, is_video);
                    self.take_early_demands(now, id, track);
                }
            }
            Command::Unpublish { room, track } => {
                self.forget_track(track);
                if let Some(room) = self.rooms.get_mut(&room) {
                    room.unpublish(track);
                }
            }
            Command::Subscribe { room: room_id, session, track, publisher, is_video, home } => {
                let own = self.config.worker;
                if let Some(room) = self.rooms.get_mut(&room_id).filter(|r| r.member(session).is_some()) {
                    if home != own {
                        room.publish_elsewhere(track, publisher, is_video, home);
                    }
                    room.subscribe(track, session);
                    self.tell_homes(room_id);
                }
            }
            Command::Unsubscribe { room: room_id, session, track } => {
                if let Some(room) = self.rooms.get_mut(&room_id) {
                    room.unsubscribe(track, session);
                    self.tell_homes(room_id);
                }
            }
            Command::Want { room: room_id, session, track, wanted } => {
                if let Some(room) = self.rooms.get_mut(&room_id) {
                    room.set_wanted(track, session, wanted);
                    self.tell_homes(room_id);
                }
            }
            Command::Spread { room, workers } => {
                let own = self.config.worker;
                if let Some(room) = self.rooms.get_mut(&room) {
                    room.elsewhere = workers.into_iter().filter(|w| *w != own).collect();
                }
            }
            Command::TellLastMessage { session } => {
                if let Some(sequence) = self.places.get(&session).map(|p| p.last_message) {
                    self.effects.push(Effect::Report(Report::LastMessage { session, sequence }));
                }
            }
            Command::StepOut { session } => self.step_out(session),
            Command::StepIn { session } => self.step_in(now, session),
            Command::Close { session } => self.close(now, session),
            Command::Relay(config) => self.reconfigure_relay(now, config),
            Command::Drain => self.drain_relay(),
        }
    }

    /// A member leaves its room with all that it publishes and hears.
    pub(super) fn leave_room(&mut self, id: SessionId, room_id: RoomId) {
        let Some(room) = self.rooms.get_mut(&room_id) else { return };
        let mut gone = room.leave(id);
        let is_empty = room.is_empty();
        if is_empty {
            gone.extend(room.tracks());
        }
        for track in gone {
            self.forget_track(track);
        }
        self.tell_homes(room_id);
        if is_empty {
            self.rooms.remove(&room_id);
            self.timers.forget(Timer::Speakers(room_id));
        }
    }

    fn step_out(&mut self, id: SessionId) {
        let Some(place) = self.places.get_mut(&id) else { return };
        let room = place.room;
        if let Some(member) = self.rooms.get(&room).and_then(|r| r.member(id)) {
            place.stepped_out = Some(member.clone());
            place.data_routes.clear();
            self.leave_room(id, room);
        }
    }

    /// It is to find a way soon, if it has none; which one it has is told anew.
    fn step_in(&mut self, now: Now, id: SessionId) {
        let Some(place) = self.places.get_mut(&id) else { return };
        let Some(member) = place.stepped_out.take() else { return };
        self.at_work = Some(id);
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.await_return(now.mono);
        // Without a way its streams would begin unheard, as they would without keys.
        let is_live = member.is_live && session.path().is_some();
        self.rooms.entry(place.room).or_default().join(Member { is_live, ..member });
        if let Some(path) = session.path() {
            let kind = self.kind_of(path);
            self.effects.push(Effect::Report(Report::Path { session: id, kind }));
        }
        self.arm_session(id);
    }

    /// A room message: stamped with its true sender and passed to those it names.
    pub(super) fn data(&mut self, now: Now, from: SessionId, delivery: Delivery, bytes: &[u8]) {
        let room = self.places.get(&from).and_then(|p| self.rooms.get(&p.room));
        let Some((room, member)) = room.and_then(|r| Some((r, r.member(from)?))) else {
            return self.counters.count(Counter::DropDataAbsent);
        };
        if !member.can_publish_data {
            return self.counters.count(Counter::DropDataForbidden);
        }
        let Ok(destinations) = data_packet::destinations(bytes) else {
            return self.counters.count(Counter::DropDataMalformed);
        };
        let is_for_server = destinations.iter().any(|to| to.starts_with(SERVER_IDENTITIES));
        let sequence = data_packet::sequence(bytes);
        if let Some(place) = self.places.get_mut(&from).filter(|_| delivery == Delivery::Reliable && sequence > 0) {
            if sequence <= place.last_message {
                // After a resume the client sends again what it does not know to have arrived.
                return self.counters.count(Counter::DropDataRepeated);
            }
            place.last_message = sequence;
        }
        let stamped = data_packet::stamped(bytes, delivery, &member.identity, &member.sid);
        let Some(room_id) = self.places.get(&from).map(|p| p.room) else { return };
        if is_for_server {
            if bytes.len() > FOR_SERVER_MAX || !self.may_tell_server(now, from) {
                return self.counters.count(Counter::DropDataForbidden);
            }
            return self.effects.push(Effect::Report(Report::Data { session: from, bytes: stamped }));
        }
        for to in room.elsewhere.iter().copied() {
            let parcel = Parcel::Data { room: room_id, delivery, bytes: stamped.clone() };
            self.effects.push(Effect::Parcel { to, parcel });
        }
        self.pass_data(now, room_id, Some(from), delivery, &stamped);
    }

    fn may_tell_server(&mut self, now: Now, from: SessionId) -> bool {
        let Some(place) = self.places.get_mut(&from) else { return false };
        let (since, count) = &mut place.told_server;
        if now.mono.since(*since) >= Duration::from_secs(1) {
            (*since, *count) = (now.mono, 0);
        }
        *count += 1;
        *count <= FOR_SERVER_A_SECOND
    }

    /// A stamped message to those of its receivers that are here.
    pub(super) fn pass_data(&mut self, now: Now, room: RoomId, from: Option<SessionId>, delivery: Delivery, stamped: &[u8]) {
        let (Some(room), Ok(destinations)) = (self.rooms.get(&room), data_packet::destinations(stamped)) else { return };
        let receivers: Vec<SessionId> = room.data_receivers(from, &destinations).collect();
        for receiver in receivers {
            self.at_work = Some(receiver);
            if let Some(session) = self.sessions.get_mut(&receiver) {
                let mut effects = Vec::new();
                self.counters.count(fate(session.send_data(now.mono, delivery, stamped, &mut effects)));
                self.drain_session(now, receiver, effects);
                self.arm_session(receiver);
            }
        }
    }

    /// A packet of a data track: to each that subscribes to it, under the handle that it knows the track by.
    pub(super) fn data_track(&mut self, now: Now, from: SessionId, packet: Vec<u8>) {
        let Some(handle) = data_track::handle(&packet) else { return self.counters.count(Counter::DropDataMalformed) };
        let hearers = self.places.get(&from).and_then(|p| p.data_routes.get(&handle));
        let Some(hearers) = hearers.cloned() else { return self.counters.count(Counter::DropDataTrackUnknown) };
        let of = |worker| hearers.iter().filter(move |(w, ..)| *w == worker).map(|(_, session, handle)| (*session, *handle)).collect();
        let own = self.config.worker;
        let mut others: Vec<_> = hearers.iter().map(|(worker, ..)| *worker).filter(|w| *w != own).collect();
        others.sort_unstable();
        others.dedup();
        for to in others {
            let parcel = Parcel::DataTrack { hearers: of(to), bytes: packet.clone() };
            self.effects.push(Effect::Parcel { to, parcel });
        }
        let here: Vec<(SessionId, u16)> = of(own);
        self.pass_data_track(now, &here, packet);
    }

    pub(super) fn pass_data_track(&mut self, now: Now, hearers: &[(SessionId, u16)], mut packet: Vec<u8>) {
        for (hearer, handle) in hearers {
            self.at_work = Some(*hearer);
            let Some(session) = self.sessions.get_mut(hearer) else { continue };
            data_track::set_handle(&mut packet, *handle);
            let mut effects = Vec::new();
            self.counters.count(fate(session.send_data_track(now.mono, &packet, &mut effects)));
            self.drain_session(now, *hearer, effects);
            self.arm_session(*hearer);
        }
    }
}

/// What became of a message to one receiver.
fn fate(outcome: Result<(), sctp::SctpDrop>) -> Counter {
    match outcome {
        Ok(()) => Counter::DataMessages,
        Err(sctp::SctpDrop::QueueFull | sctp::SctpDrop::TooLong) => Counter::DropDataQueue,
        Err(sctp::SctpDrop::NoChannel) => Counter::DropDataNoChannel,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::{TrackId, WorkerId};
    use crate::base::rng::Rng;
    use crate::base::time::{Anchor, Instant, UnixTime};
    use crate::crypto::SecretRng;
    use crate::engine::dtls::Identity;
    use crate::engine::ice::Credentials;
    use crate::engine::turn::TurnConfig;
    use crate::engine::turn_auth::Secrets;
    use crate::room::Word;
    use crate::shard::{PortRole, ShardConfig};
    use std::sync::Arc;

    #[allow(clippy::disallowed_methods, reason = "the crates behind want a clock of std's")]
    fn shard() -> Shard {
        let turn = TurnConfig::closed(Secrets::new("realm", &[7; 32], &[], &HashMap::new()), Vec::new(), 2);
        let config = ShardConfig {
            worker: WorkerId(0),
            workers: 2,
            sockets: vec![PortRole::Media],
            turn: Arc::new(turn),
            identity: Identity::generate().expect("a certificate"),
            anchor: Anchor::new(std::time::Instant::now()),
            buffers: 4,
            store_bytes: 1 << 20,
        };
        Shard::new(config, SecretRng::seeded(1), Rng::new(1))
    }

    /// A shard with one member that publishes a camera.
    fn with_publisher(shard: &mut Shard, now: Now) -> (RoomId, SessionId, TrackId) {
        let (room, session, track) = (RoomId(1), SessionId(2), TrackId(3));
        shard.handle_command(
            now,
            Command::Open {
                session,
                room,
                credentials: Credentials { ufrag: "00abcdefghij".into(), pwd: "p".repeat(24) },
                identity: "ada".into(),
                sid: "PA_ada".into(),
                can_publish_data: true,
                hears_data: true,
                opens_channels: false,
            },
        );
        shard.handle_command(now, Command::Publish { room, session, track, is_video: true });
        (room, session, track)
    }

    /// Whether the other worker was told this.
    fn told(shard: &mut Shard, is_it: impl Fn(&Word) -> bool) -> bool {
        let of = |e: &Effect| matches!(e, Effect::Parcel { to: WorkerId(1), parcel: Parcel::Word { word, .. } } if is_it(word));
        shard.take_effects().iter().any(of)
    }

    const NOW: Now = Now { mono: Instant::from_millis(1), wall: UnixTime::from_nanos(0) };

    #[test]
    fn a_demand_that_comes_before_its_track_is_heard_when_that_is_published() {
        let mut shard = shard();
        shard.handle_parcel(NOW, WorkerId(1), Parcel::Word { room: RoomId(1), track: TrackId(3), word: Word::Demand(0b100) });
        assert!(shard.take_effects().is_empty(), "not known yet");
        with_publisher(&mut shard, NOW);
        assert!(told(&mut shard, |w| matches!(w, Word::Live(_))), "the other worker is told what there is");
    }

    #[test]
    fn what_comes_behind_a_silence_begins_anew_on_all_workers() {
        let mut shard = shard();
        let (room, _, track) = with_publisher(&mut shard, NOW);
        shard.handle_parcel(NOW, WorkerId(1), Parcel::Word { room, track, word: Word::Demand(0b100) });
        for is_silenced in [true, false] {
            shard.handle_command(NOW, Command::Silence { track, is_silenced });
            assert_eq!(told(&mut shard, |w| *w == Word::Restart), !is_silenced);
        }
        shard.handle_command(NOW, Command::Silence { track: TrackId(9), is_silenced: true });
        assert!(shard.silenced.is_empty(), "of a track that is not there nothing is kept");
    }

    #[test]
    fn a_member_that_steps_out_keeps_its_transport_and_returns_as_it_was() {
        let mut shard = shard();
        let (room, session, _) = with_publisher(&mut shard, NOW);
        shard.handle_command(NOW, Command::StepOut { session });
        assert!(shard.rooms.is_empty() && shard.sessions.contains_key(&session), "its transport stays");
        shard.handle_command(NOW, Command::StepIn { session });
        assert!(shard.rooms[&room].member(session).is_some_and(|m| m.identity == "ada" && !m.is_live), "it has no way yet");
        shard.handle_command(NOW, Command::StepOut { session });
        shard.handle_command(NOW, Command::Close { session });
        assert!(shard.rooms.is_empty() && shard.sessions.is_empty() && shard.places.is_empty());
    }
}
