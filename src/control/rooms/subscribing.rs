//! Who wants which track, and in which size; the sections of a client's offer that they are carried in.

use super::{Down, Rooms, Subscription};
use crate::base::id::{SessionId, Ssrc};
use crate::control::tracks::{codec_of, kind_of, layers_of, voice_of, want, wanted_layer, wanted_temporal};
use crate::room::layers::TEMPORAL_ALL;
use crate::shard::mail::Command;
use crate::wire::rtp::Codec;
use crate::wire::sdp::Kind;
use livekit_protocol as proto;
use std::collections::HashMap;

impl Rooms {
    pub(super) fn subscribe_to_all(&mut self, session: SessionId) {
        let Some(name) = self.places.get(&session) else { return };
        let Some(room) = self.rooms.get(name) else { return };
        let Some(me) = room.participants.iter().find(|p| p.session == session) else { return };
        if !me.auto_subscribe {
            return;
        }
        let others = room.participants.iter().filter(|p| p.session != session);
        let tracks: Vec<String> = others.flat_map(|p| p.info.tracks.iter().map(|t| t.sid.clone())).collect();
        for sid in tracks {
            self.subscribe(session, &sid);
        }
    }

    /// Wants a track; it flows once a section is free for it. `false` when there is no such track.
    pub(super) fn subscribe(&mut self, session: SessionId, track_sid: &str) -> bool {
        let two = self.secrets.u64();
        let (ssrc, rtx) = (Ssrc(two as u32 | 1), Ssrc((two >> 32) as u32 & !1));
        let Some(room) = self.places.get(&session).and_then(|name| self.rooms.get_mut(name)) else { return false };
        let found = room.participants.iter().filter(|p| p.session != session).find_map(|p| {
            let track = p.tracks.iter().find(|t| t.info.sid == track_sid && t.mid.is_some())?;
            Some(Subscription {
                track: track.id,
                sid: track_sid.to_owned(),
                publisher: p.session,
                publisher_sid: p.sid.clone(),
                home: p.worker,
                kind: kind_of(&track.info),
                codec: codec_of(&track.info),
                redundancy: voice_of(&track.info).redundancy,
                ssrc,
                rtx,
                mid: None,
                enabled: true,
                layer_max: 2,
                temporal_max: TEMPORAL_ALL,
            })
        });
        let Some(subscription) = found else { return false };
        let Some(p) = room.participants.iter_mut().find(|p| p.session == session) else { return false };
        let can_subscribe = p.info.permission.as_ref().is_some_and(|p| p.can_subscribe);
        if can_subscribe && !p.subscriptions.iter().any(|s| s.track == subscription.track) {
            p.subscriptions.push(subscription);
        }
        true
    }

    pub fn update_subscription(&mut self, session: SessionId, request: &proto::UpdateSubscription) {
        let of_participants = request.participant_tracks.iter().flat_map(|p| &p.track_sids);
        let sids: Vec<String> = request.track_sids.iter().chain(of_participants).cloned().collect();
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
        self.ask_for_sections(session);
    }

    pub(super) fn unsubscribe(&mut self, session: SessionId, track_sid: &str) {
        let Some(room) = self.places.get(&session).and_then(|name| self.rooms.get_mut(name)) else { return };
        let room_id = room.id;
        let Some(p) = room.participants.iter_mut().find(|p| p.session == session) else { return };
        if let Some(at) = p.subscriptions.iter().position(|s| s.sid == track_sid) {
            let gone = p.subscriptions.remove(at);
            (self.around.mail)(p.worker, Command::Unsubscribe { room: room_id, session, track: gone.track });
            if gone.mid.is_some() {
                // The client lets go of the track when its section does: ask it to offer again.
                self.tell(session, Down::MediaSectionsRequirement(proto::MediaSectionsRequirement::default()));
            }
        }
    }

    pub fn track_settings(&mut self, session: SessionId, request: &proto::UpdateTrackSettings) {
        let Some(room) = self.places.get(&session).and_then(|name| self.rooms.get_mut(name)) else { return };
        let room_id = room.id;
        let layers: HashMap<String, Vec<proto::VideoLayer>> =
            room.participants.iter().flat_map(|p| &p.tracks).map(|t| (t.info.sid.clone(), layers_of(&t.info))).collect();
        let Some(p) = room.participants.iter_mut().find(|p| p.session == session) else { return };
        for subscription in p.subscriptions.iter_mut().filter(|s| request.track_sids.contains(&s.sid)) {
            subscription.enabled = !request.disabled && request.quality != proto::VideoQuality::Off as i32;
            subscription.layer_max = wanted_layer(request, layers.get(&subscription.sid).map_or(&[], Vec::as_slice));
            subscription.temporal_max = wanted_temporal(request.fps);
            (self.around.mail)(p.worker, want(room_id, session, subscription));
        }
    }

    /// Asks a client for sections when it has fewer than it subscribes to tracks, or to offer again when it has enough.
    pub(super) fn ask_for_sections(&mut self, session: SessionId) {
        let Some(p) = self.participant(session) else { return };
        let waiting = |kind: Kind| p.subscriptions.iter().filter(|s| s.kind == kind && s.mid.is_none()).count() as u32;
        let (audio, video) = (waiting(Kind::Audio), waiting(Kind::Video));
        if !p.has_offered || (audio, video) == (0, 0) {
            return;
        }
        // Asked once for each track that waits; zeros ask to offer again with what is there.
        if audio <= p.asked.0 && video <= p.asked.1 {
            return;
        }
        let more = |waiting: u32, asked: u32, free: u32| waiting.saturating_sub(asked.max(free));
        let num_audios = more(audio, p.asked.0, p.free_sections.0);
        let waits_for_av1 = p.subscriptions.iter().any(|s| s.mid.is_none() && s.codec == Some(Codec::Av1));
        let num_videos = more(video, p.asked.1, if waits_for_av1 { p.free_described } else { p.free_sections.1 });
        p.asked = (p.asked.0.max(audio), p.asked.1.max(video));
        p.described_asked = p.described_asked.saturating_add(u8::from(waits_for_av1));
        let requirement = proto::MediaSectionsRequirement { num_audios, num_videos };
        self.tell(session, Down::MediaSectionsRequirement(requirement));
    }
}
