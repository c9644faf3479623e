//! Who wants which track, and in which size; the sections of a client's offer that they are carried in.

use super::permissions::is_allowed;
use super::{Dialogue, Down, Hearing, Rooms, Subscription, Track, backup, mono};
use crate::base::id::{SessionId, TrackId};
use crate::control::tracks::{codec_of, kind_of, layers_of, stream_of, voice_of, want, wanted_layer, wanted_temporal};
use crate::room::layers::TEMPORAL_ALL;
use crate::shard::mail::Command;
use crate::wire::rtp::Codec;
use crate::wire::sdp::Kind;
use livekit_protocol as proto;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How long after its first hearer a publisher is told of it.
const TOLD_AFTER: Duration = Duration::from_millis(500);
/// Tracks that one request may name.
const TRACKS_AT_ONCE: usize = 2_048;

impl Rooms {
    pub(super) fn subscribe_to_all(&mut self, session: SessionId) {
        let Some(room) = self.room_of(session) else { return };
        let Some(me) = room.participants.iter().find(|p| p.session == session) else { return };
        if !me.auto_subscribe {
            return;
        }
        let others = room.participants.iter().filter(|p| p.session != session && me.wants_to_hear(&p.info.identity));
        let tracks: Vec<String> = others.flat_map(|p| p.info.tracks.iter().map(|t| t.sid.clone())).collect();
        for sid in tracks {
            self.subscribe(session, &sid);
        }
    }

    /// Wants a track; it flows once a section is free for it. `false` when there is no such track.
    pub(super) fn subscribe(&mut self, session: SessionId, track_sid: &str) -> bool {
        let (ssrc, rtx) = self.ssrcs();
        let Some(room) = self.room_of(session) else { return false };
        let sync_streams = room.sync_streams;
        let Some(me) = room.participants.iter().find(|p| p.session == session) else { return false };
        let found = room.participants.iter().filter(|p| p.session != session).find_map(|p| {
            let track = p.tracks.iter().find(|t| t.is_published() && t.info.sid == track_sid)?;
            let mut subscription = Subscription {
                track: track.id,
                sid: track_sid.to_owned(),
                publisher: p.session,
                publisher_sid: p.sid.clone(),
                stream: stream_of(&p.sid, &track.info, sync_streams && me.syncs_streams),
                home: p.worker,
                kind: kind_of(&track.info),
                codec: codec_of(&track.info),
                backup: backup::of(&p.tracks, track_sid),
                is_published: true,
                redundancy: voice_of(&track.info).redundancy,
                ssrc,
                rtx,
                mid: None,
                is_allowed: is_allowed(p.listeners.as_ref(), &me.sid, &me.info.identity, track_sid),
                is_routed: false,
                enabled: true,
                layer_max: 2,
                temporal_max: TEMPORAL_ALL,
                layer: None,
                is_paused: false,
            };
            backup::follow(&mut subscription, &p.tracks);
            Some(subscription)
        });
        let Some(subscription) = found else { return false };
        let Some(p) = room.participants.iter_mut().find(|p| p.session == session) else { return false };
        let can_subscribe = p.info.permission.as_ref().is_some_and(|p| p.can_subscribe);
        if !can_subscribe || p.subscriptions.iter().any(|s| s.sid == subscription.sid) {
            return true;
        }
        let refused = (!subscription.is_allowed).then(|| proto::SubscriptionPermissionUpdate {
            participant_sid: subscription.publisher_sid.clone(),
            track_sid: track_sid.to_owned(),
            allowed: false,
        });
        p.subscriptions.push(subscription);
        if let Some(refused) = refused {
            self.tell(session, Down::SubscriptionPermissionUpdate(refused));
        }
        true
    }

    pub fn update_subscription(&mut self, session: SessionId, request: &proto::UpdateSubscription) {
        let of_participants = request.participant_tracks.iter().flat_map(|p| &p.track_sids);
        let sids: Vec<String> = request.track_sids.iter().chain(of_participants).take(TRACKS_AT_ONCE).cloned().collect();
        for sid in sids {
            if request.subscribe {
                if !self.subscribe(session, &sid) {
                    let response = proto::SubscriptionResponse { track_sid: sid, err: proto::SubscriptionError::SeTrackNotfound as i32 };
                    self.tell(session, Down::SubscriptionResponse(response));
                }
            } else {
                self.unsubscribe(session, &sid);
            }
        }
        self.negotiate_hearing(session);
    }

    pub(super) fn unsubscribe(&mut self, session: SessionId, track_sid: &str) {
        let Some(room) = self.room_of(session) else { return };
        let room_id = room.id;
        let Some(p) = room.participants.iter_mut().find(|p| p.session == session) else { return };
        if let Some(at) = p.subscriptions.iter().position(|s| s.sid == track_sid) {
            let gone = p.subscriptions.remove(at);
            let (worker, ear) = (p.worker, p.ear());
            self.mail(worker, Command::Unsubscribe { room: room_id, session: ear, track: gone.track });
            if gone.mid.is_some() {
                self.sections_freed(session);
            }
        }
    }

    /// A client lets go of a track when its section does: it is asked to offer again.
    pub(super) fn sections_freed(&mut self, session: SessionId) {
        if self.participant(session).is_some_and(|p| p.subscriber.is_none() && p.sections.freed()) {
            self.tell(session, Down::MediaSectionsRequirement(proto::MediaSectionsRequirement::default()));
        }
    }

    pub(super) fn unsubscribe_from_all(&mut self, session: SessionId) {
        let Some(p) = self.participant(session) else { return };
        let sids: Vec<String> = p.subscriptions.iter().map(|s| s.sid.clone()).collect();
        for sid in sids {
            self.unsubscribe(session, &sid);
        }
        self.negotiate_hearing(session);
    }

    /// Tracks that are no more: nobody subscribes to them any longer.
    pub(super) fn forget_tracks(&mut self, room: &str, tracks: &[TrackId]) {
        let Some(room) = self.rooms.get_mut(room) else { return };
        let (mut losers, mut heirs) = (Vec::new(), Vec::new());
        for p in &mut room.participants {
            let lost: Vec<Subscription> = p.subscriptions.extract_if(.., |s| tracks.contains(&s.track)).collect();
            if !lost.is_empty() && (p.subscriber.is_some() || p.dialogue == Dialogue::OneShot) {
                losers.push(p.session);
            } else if lost.iter().any(|s| s.mid.is_some()) && p.subscriptions.iter().any(Subscription::waits_for_section) {
                heirs.push(p.session);
            }
        }
        for session in losers {
            self.negotiate_hearing(session);
        }
        // What waited for want of room takes the place.
        for session in heirs {
            self.sections_freed(session);
        }
    }

    /// A track flows to a hearer: at the first one its publisher is told soon.
    pub(super) fn heard(&mut self, publisher: SessionId, track: TrackId, layer: Option<u8>) {
        let Some(p) = self.participant(publisher) else { return };
        if let Some(track) = p.tracks.iter_mut().find(|t| t.id == track && t.hearing == Hearing::Nobody) {
            track.hearing = Hearing::Untold(mono());
        }
        self.layer_wanted(publisher, track, layer);
    }

    /// Tells publishers which of their tracks have found a hearer.
    pub(super) fn tell_heard(&mut self, now: Instant) {
        let is_due = |t: &&mut Track| matches!(t.hearing, Hearing::Untold(since) if now.duration_since(since) >= TOLD_AFTER);
        let mut heard = Vec::new();
        for p in self.rooms.values_mut().flat_map(|r| &mut r.participants).filter(|p| p.signal.is_some()) {
            for track in p.tracks.iter_mut().filter(is_due) {
                track.hearing = Hearing::Told;
                heard.push((p.session, track.info.sid.clone()));
            }
        }
        for (session, track_sid) in heard {
            self.tell(session, Down::TrackSubscribed(proto::TrackSubscribed { track_sid }));
        }
    }

    pub fn track_settings(&mut self, session: SessionId, request: &proto::UpdateTrackSettings) {
        let Some(room) = self.room_of(session) else { return };
        let room_id = room.id;
        let layers: HashMap<String, Vec<proto::VideoLayer>> = room
            .participants
            .iter()
            .flat_map(|p| &p.tracks)
            .filter(|t| !t.is_backup)
            .map(|t| (t.info.sid.clone(), layers_of(&t.info)))
            .collect();
        let Some(p) = room.participants.iter_mut().find(|p| p.session == session) else { return };
        let (worker, ear) = (p.worker, p.ear());
        let mut wants = Vec::new();
        let named: HashSet<&String> = request.track_sids.iter().take(TRACKS_AT_ONCE).collect();
        for subscription in p.subscriptions.iter_mut().filter(|s| named.contains(&s.sid)) {
            subscription.enabled = !request.disabled && request.quality != proto::VideoQuality::Off as i32;
            subscription.layer_max = wanted_layer(request, layers.get(&subscription.sid).map_or(&[], Vec::as_slice));
            subscription.temporal_max = wanted_temporal(request.fps);
            wants.push((want(room_id, ear, subscription), subscription.publisher, subscription.track, subscription.layer_wanted()));
        }
        for (want, publisher, track, layer) in wants {
            self.mail(worker, want);
            self.layer_wanted(publisher, track, layer);
        }
    }

    /// Asks a client for sections when it has fewer than it subscribes to tracks, or to offer again when it has enough.
    pub(super) fn ask_for_sections(&mut self, session: SessionId) {
        let Some(p) = self.participant(session) else { return };
        let waiting = |kind: Kind| p.subscriptions.iter().filter(|s| s.kind == kind && s.waits_for_section()).count() as u32;
        let waiting = (waiting(Kind::Audio), waiting(Kind::Video));
        let waits_for_av1 = p.subscriptions.iter().any(|s| s.waits_for_section() && s.codec == Some(Codec::Av1));
        let Some((num_audios, num_videos)) = p.sections.request(waiting, waits_for_av1) else { return };
        let requirement = proto::MediaSectionsRequirement { num_audios, num_videos };
        self.tell(session, Down::MediaSectionsRequirement(requirement));
    }
}
