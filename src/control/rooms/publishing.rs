//! What participants publish, and what they say of themselves.

use super::{Down, Participant, Rooms, Track, backup};
use crate::base::id::{SessionId, TrackId};
use crate::control::tracks::{is_reserved, is_too_long, kind_of, may_publish, track_info};
use crate::shard::mail::Command;
use crate::wire::sdp::Kind;
use livekit_protocol as proto;
use prost::Message as _;
use proto::request_response::{Reason, Request};

/// Longest name of a track, bytes.
const TRACK_NAME_MAX: usize = 256;
/// Longest client id of a track, bytes: a browser's is a UUID.
const CID_MAX: usize = 256;

/// Longest request for a track, bytes: all of it is told to everybody.
const REQUEST_MAX: usize = 16 * 1024;
const FEATURES_MAX: usize = 16;

impl Rooms {
    /// `AddTrackRequest`: the track gets its sid; it is published once an offer carries it.
    pub fn add_track(&mut self, session: SessionId, request: proto::AddTrackRequest) {
        let tracks_max = self.around.tracks_per_participant;
        let (id, backup, random) = (TrackId(self.next_id()), TrackId(self.next_id()), self.secrets.id_chars(12));
        let Some(p) = self.participant(session) else { return };
        let refusal = if !may_publish(p.info.permission.as_ref(), request.source) {
            Some((Reason::NotAllowed, "the token does not allow publishing this source"))
        } else if !matches!(proto::TrackType::try_from(request.r#type), Ok(proto::TrackType::Audio | proto::TrackType::Video)) {
            Some((Reason::UnsupportedType, "a track is audio or video"))
        } else if request.encoded_len() > REQUEST_MAX {
            Some((Reason::LimitExceeded, "a request for a track has at most 16 KiB"))
        } else if request.name.len() > TRACK_NAME_MAX || request.cid.len() > CID_MAX {
            Some((Reason::LimitExceeded, "a track's name and cid have at most 256 bytes"))
        } else if p.tracks.iter().any(|t| t.mid.is_none() && !t.is_resting() && t.cid == request.cid) {
            Some((Reason::Queued, "this cid is being published already"))
        } else if !request.sid.is_empty() && !p.tracks.iter().any(|t| t.is_backup && t.info.sid == request.sid) {
            Some((Reason::NotFound, "there is no such track that has another codec"))
        } else if request.sid.is_empty() && p.tracks.iter().filter(|t| !t.is_backup).count() >= tracks_max {
            Some((Reason::LimitExceeded, "limits.tracks_per_participant is reached"))
        } else {
            None
        };
        if let Some((reason, message)) = refusal {
            return self.respond(session, 0, reason, message, Request::AddTrack(request));
        }
        let info = if request.sid.is_empty() {
            let info = track_info(&request, random);
            p.tracks.push(Track::new(id, request.cid.clone(), info.clone()));
            p.tracks.extend(Track::backup(backup, &info));
            Some(info)
        } else {
            backup::begin(&mut p.tracks, &request)
        };
        self.tell(session, Down::TrackPublished(proto::TrackPublishedResponse { cid: request.cid, track: info }));
    }

    pub fn mute(&mut self, session: SessionId, request: proto::MuteTrackRequest) {
        if !self.set_muted(session, &request.sid, request.muted, false) {
            self.respond(session, 0, Reason::NotFound, "no such track", Request::Mute(request));
        }
    }

    /// Mutes or unmutes a track. What still comes of one that was muted against its publisher's will is dropped: the client
    /// need not obey. `false` when there is no such track.
    pub(super) fn set_muted(&mut self, session: SessionId, sid: &str, is_muted: bool, by_force: bool) -> bool {
        let Some(p) = self.participant(session) else { return false };
        let worker = p.worker;
        let mut silenced = Vec::new();
        for track in p.tracks.iter_mut().filter(|t| t.info.sid == sid) {
            track.info.muted = is_muted;
            track.is_silenced = is_muted && (by_force || track.is_silenced);
            silenced.push((track.id, track.is_silenced));
        }
        if silenced.is_empty() {
            return false;
        }
        let published = p.info.tracks.iter_mut().find(|t| t.sid == sid);
        let was_published = published.is_some();
        published.into_iter().for_each(|t| t.muted = is_muted);
        for (track, is_silenced) in silenced {
            self.mail(worker, Command::Silence { track, is_silenced });
        }
        if was_published {
            self.announce(session, true);
        }
        true
    }

    /// An audio or video track says more of itself (`UpdateLocalAudioTrack`, `UpdateLocalVideoTrack`).
    pub fn update_track(&mut self, session: SessionId, sid: &str, change: impl Fn(&mut proto::TrackInfo)) {
        let Some(p) = self.participant(session) else { return };
        let own = p.tracks.iter_mut().filter(|t| t.info.sid == sid).map(|t| &mut t.info);
        let told = p.info.tracks.iter_mut().filter(|t| t.sid == sid);
        let mut found = false;
        own.chain(told).for_each(|info| {
            change(info);
            info.audio_features.truncate(FEATURES_MAX);
            found = true;
        });
        if found {
            self.announce(session, true);
        }
    }

    pub fn update_metadata(&mut self, session: SessionId, request: proto::UpdateParticipantMetadata) {
        let Some(p) = self.participant(session) else { return };
        let may = p.info.permission.as_ref().is_some_and(|p| p.can_update_metadata);
        let (reason, message) = if !may {
            (Reason::NotAllowed, "the token does not allow changing one's own metadata")
        } else if self.describe(session, &request.name, &request.metadata, &request.attributes) {
            (Reason::Ok, "")
        } else {
            (Reason::LimitExceeded, "name, metadata or attributes are too long")
        };
        self.respond(session, request.request_id, reason, message, Request::UpdateMetadata(request));
    }

    /// Changes what a participant is called and says of itself; empty texts change nothing, an empty attribute goes. `false`
    /// when it would be too long.
    pub(super) fn describe(
        &mut self,
        session: SessionId,
        name: &str,
        metadata: &str,
        attributes: &std::collections::HashMap<String, String>,
    ) -> bool {
        let audit = self.around.audit.clone();
        let Some(p) = self.participant(session) else { return true };
        let mut after = p.info.clone();
        if !metadata.is_empty() {
            after.metadata = metadata.to_owned();
        }
        if !name.is_empty() {
            after.name = name.to_owned();
        }
        for (key, value) in attributes.iter().filter(|(key, _)| !is_reserved(key)) {
            if value.is_empty() {
                after.attributes.remove(key);
            } else {
                after.attributes.insert(key.clone(), value.clone());
            }
        }
        if is_too_long(&after.name, &after.metadata, &after.attributes) {
            return false;
        }
        if p.info != after {
            p.claims.name.clone_from(&after.name);
            p.claims.metadata.clone_from(&after.metadata);
            let own = after.attributes.iter().filter(|(key, _)| !is_reserved(key));
            p.claims.attributes = own.map(|(key, value)| (key.clone(), value.clone())).collect();
            let has_news = audit.kept(&p.info.attributes) != audit.kept(&after.attributes);
            p.info = after;
            self.announce(session, true);
            if has_news {
                self.note_attributes(session);
            }
            // Who joins anew is still called so.
            self.refresh_token(session);
        }
        true
    }

    /// The data plane may pass a track on; what comes of one that was muted by force is still dropped.
    pub(super) fn route_published(&mut self, session: SessionId, track: TrackId) {
        let Some(room) = self.room_of(session).map(|r| r.id) else { return };
        let Some(p) = self.participant(session) else { return };
        let Some(found) = p.tracks.iter().find(|t| t.id == track) else { return };
        let (worker, is_video, is_silenced) = (p.worker, kind_of(&found.info) == Kind::Video, found.is_silenced);
        self.mail(worker, Command::Publish { room, session, track, is_video });
        if is_silenced {
            self.mail(worker, Command::Silence { track, is_silenced });
        }
    }

    // ---- what an offer changed ------------------------------------------------------------------------------------

    /// Tells everybody what a participant publishes now, and has the others subscribe.
    pub(super) fn publications_changed(&mut self, session: SessionId) {
        let Some(name) = self.places.get(&session).cloned() else { return };
        let Some(p) = self.participant(session) else { return };
        let key = p.session;
        let bound: Vec<proto::TrackInfo> = p.tracks.iter().filter(|t| t.is_published()).map(|t| t.info.clone()).collect();
        if bound == p.info.tracks {
            return;
        }
        let fresh: Vec<proto::TrackInfo> = bound.iter().filter(|t| !p.info.tracks.iter().any(|o| o.sid == t.sid)).cloned().collect();
        p.info.is_publisher |= !bound.is_empty();
        p.info.tracks = bound;
        let (info, is_active) = (p.info.clone(), p.is_active());
        self.announce(key, true);
        // Of somebody who is not connected yet they are told when it is.
        for track in &fresh {
            self.note_track(key, "published", track);
        }
        for track in fresh.iter().filter(|_| is_active) {
            self.event("track_published", &name, Some(&info), Some(track));
        }
        if let Some(room) = self.rooms.get_mut(&name) {
            room.has_changed = true;
            let hears = |p: &&Participant| p.session != key && p.auto_subscribe && p.wants_to_hear(&info.identity);
            let others: Vec<SessionId> = room.participants.iter().filter(hears).map(|p| p.session).collect();
            for other in others {
                for track in &fresh {
                    self.subscribe(other, &track.sid);
                }
                self.negotiate_hearing(other);
            }
        }
    }

    /// Tracks that an offer no longer carries.
    pub(super) fn unpublished(&mut self, session: SessionId, tracks: &[TrackId]) {
        let Some(name) = self.places.get(&session).cloned().filter(|_| !tracks.is_empty()) else { return };
        let Some(p) = self.participant(session) else { return };
        let (info, is_active) = (p.info.clone(), p.is_active());
        let gone = info.tracks.iter().filter(|t| !p.tracks.iter().any(|o| o.info.sid == t.sid));
        let gone: Vec<proto::TrackInfo> = gone.cloned().collect();
        for track in &gone {
            self.note_track(session, "unpublished", track);
        }
        for track in gone.iter().filter(|_| is_active) {
            self.event("track_unpublished", &name, Some(&info), Some(track));
        }
        let returned = self.backups_ended(session, tracks);
        self.forget_tracks(&name, tracks);
        for hearer in returned {
            self.negotiate_hearing(hearer);
        }
    }

    /// Takes a track from its publisher, who is told.
    pub(super) fn take_track(&mut self, session: SessionId, sid: &str) {
        let Some(name) = self.places.get(&session).cloned() else { return };
        let Some(room) = self.rooms.get(&name).map(|r| r.id) else { return };
        let Some(p) = self.participant(session) else { return };
        let taken: Vec<TrackId> = p.tracks.extract_if(.., |t| t.info.sid == sid).map(|t| t.id).collect();
        if taken.is_empty() {
            return;
        }
        for (worker, track) in self.workers_of(&name).into_iter().flat_map(|w| taken.iter().map(move |t| (w, *t))) {
            self.mail(worker, Command::Unpublish { room, track });
        }
        self.tell(session, Down::TrackUnpublished(proto::TrackUnpublishedResponse { track_sid: sid.to_owned() }));
        self.unpublished(session, &taken);
        self.publications_changed(session);
    }
}
