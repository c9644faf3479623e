//! The second codec of a picture (`simulcast_codecs`): for clients that cannot decode the one its publisher prefers.
//!
//! It has the sid of its track and a number of its own towards the data plane. It rests until somebody needs it; then its
//! publisher is told that its layers are wanted (`SubscribedQualityUpdate`), asks for it by the sid of its track and offers it.
//! Unless the publisher wants to send both (`BackupCodecPolicy::Simulcast`), all take it from then on: encoding twice is dear.

use super::quality::Demand;
use super::{Dialogue, Rooms, Subscription, Track};
use crate::base::id::{SessionId, TrackId};
use crate::control::tracks::{codec_of, kind_of};
use crate::shard::mail::Command;
use crate::wire::rtp::Codec;
use crate::wire::sdp::Kind;
use livekit_protocol as proto;

/// What a subscription may take instead of its track.
#[derive(Clone, Copy)]
pub(in crate::control) struct Backup {
    track: TrackId,
    codec: Option<Codec>,
}

/// The backup of the track of this sid.
pub(super) fn of(tracks: &[Track], sid: &str) -> Option<Backup> {
    tracks.iter().find(|t| t.is_backup && t.info.sid == sid).map(|t| Backup { track: t.id, codec: codec_of(&t.info) })
}

/// Brings a subscription up to date with what is published of its track: everybody may have gone over to the backup.
pub(super) fn follow(subscription: &mut Subscription, tracks: &[Track]) {
    let backup = tracks.iter().find(|t| t.is_backup && t.info.sid == subscription.sid);
    if backup.is_some_and(|b| b.id != subscription.track && b.replaces()) {
        subscription.fall_back();
    }
    subscription.is_published = tracks.iter().any(|t| t.id == subscription.track && t.mid.is_some());
}

/// A publisher is about to offer a backup: it is known by this cid from now on. What its track is like then.
pub(super) fn begin(tracks: &mut [Track], request: &proto::AddTrackRequest) -> Option<proto::TrackInfo> {
    let backup = tracks.iter_mut().find(|t| t.is_backup && t.info.sid == request.sid)?;
    backup.cid.clone_from(&request.cid);
    let mime = backup.info.mime_type.clone();
    for info in tracks.iter_mut().map(|t| &mut t.info).filter(|i| i.sid == request.sid) {
        for codec in info.codecs.iter_mut().filter(|c| c.mime_type == mime) {
            codec.cid.clone_from(&request.cid);
            if !request.layers.is_empty() {
                codec.layers.clone_from(&request.layers);
            }
        }
    }
    tracks.iter().find(|t| t.info.sid == request.sid).map(|t| t.info.clone())
}

impl Track {
    /// The second codec that a publisher has told of, if any.
    pub(super) fn backup(id: TrackId, of: &proto::TrackInfo) -> Option<Self> {
        let codec = of.codecs.get(1).filter(|_| kind_of(of) == Kind::Video)?;
        let info = proto::TrackInfo { mime_type: codec.mime_type.clone(), codecs: vec![codec.clone()], ..of.clone() };
        Some(Self { demand: Demand::of_none(), is_backup: true, ..Self::new(id, String::new(), info) })
    }

    /// A backup that its publisher has not been asked for, or has not offered yet.
    pub(in crate::control) fn is_resting(&self) -> bool {
        self.is_backup && self.cid.is_empty()
    }

    pub(in crate::control) fn rest(&mut self) {
        self.mid = None;
        self.cid.clear();
        self.demand = Demand::of_none();
    }

    /// A backup that is there and that everybody is to take.
    fn replaces(&self) -> bool {
        self.is_backup && self.mid.is_some() && self.info.backup_codec_policy != proto::BackupCodecPolicy::Simulcast as i32
    }
}

impl Subscription {
    /// Takes the backup, if there is one, in a section that is still to be found.
    pub(in crate::control) fn fall_back(&mut self) {
        if let Some(backup) = self.backup.take() {
            (self.track, self.codec, self.is_published) = (backup.track, backup.codec, false);
            (self.mid, self.is_routed) = (None, false);
        }
    }
}

impl Rooms {
    /// Has publishers send the backups that a participant has fallen back to; those that are there already it may have.
    pub(super) fn demand_backups(&mut self, session: SessionId) {
        let Some(room) = self.room_of(session) else { return };
        let published: Vec<TrackId> =
            room.participants.iter().flat_map(|p| &p.tracks).filter(|t| t.is_backup && t.mid.is_some()).map(|t| t.id).collect();
        let Some(p) = self.participant(session) else { return };
        let mut wanted = Vec::new();
        for s in p.subscriptions.iter_mut().filter(|s| !s.is_published) {
            s.is_published = published.contains(&s.track);
            wanted.push((s.publisher, s.track, s.layer_wanted()));
        }
        for (publisher, track, layer) in wanted {
            self.layer_wanted(publisher, track, layer);
        }
    }

    /// What a participant has offered brings its backups to those who wait for them, and to all others that are to take them.
    pub(super) fn backups_published(&mut self, publisher: SessionId) {
        let Some(room) = self.room_of(publisher) else { return };
        let published = room.participants.iter().flat_map(|p| &p.tracks).filter(|t| t.is_backup && t.mid.is_some());
        let published: Vec<(String, TrackId, bool)> = published.map(|t| (t.info.sid.clone(), t.id, t.replaces())).collect();
        let (mut waited, mut replaced) = (Vec::new(), Vec::new());
        for p in &mut room.participants {
            for s in &mut p.subscriptions {
                let Some((_, backup, replaces)) = published.iter().find(|(sid, ..)| *sid == s.sid) else { continue };
                if s.track != *backup && *replaces {
                    replaced.push((p.session, s.track));
                } else if s.track == *backup && !s.is_published {
                    s.is_published = true;
                    waited.push(p.session);
                }
            }
        }
        for (session, track) in replaced {
            self.replace(session, track);
        }
        for session in waited {
            self.negotiate_hearing(session);
        }
    }

    /// Backups have ended and their tracks have not: whoever had them goes back to the tracks, with all that it wished. Who.
    pub(super) fn backups_ended(&mut self, publisher: SessionId, ended: &[TrackId]) -> Vec<SessionId> {
        let Some(room) = self.room_of(publisher) else { return Vec::new() };
        let tracks = || room.participants.iter().flat_map(|p| &p.tracks);
        let of_sid = |sid: &str| tracks().find(|t| t.is_published() && t.info.sid == sid).map(|t| (t.id, codec_of(&t.info)));
        let backups = tracks().filter(|t| t.is_backup && ended.contains(&t.id));
        let going_back: Vec<_> =
            backups.filter_map(|b| Some((Backup { track: b.id, codec: codec_of(&b.info) }, of_sid(&b.info.sid)?))).collect();
        let mut returned = Vec::new();
        for p in &mut room.participants {
            for s in &mut p.subscriptions {
                let Some((backup, (track, codec))) = going_back.iter().find(|(backup, _)| backup.track == s.track) else { continue };
                (s.track, s.codec, s.backup, s.is_published) = (*track, *codec, Some(*backup), true);
                (s.mid, s.is_routed) = (None, false);
                returned.push(p.session);
            }
        }
        returned
    }

    /// A participant takes the backup of a track from now on, where it had the track.
    fn replace(&mut self, session: SessionId, track: TrackId) {
        let (ssrc, rtx) = self.ssrcs();
        let Some(room) = self.room_of(session).map(|r| r.id) else { return };
        let Some(p) = self.participant(session) else { return };
        let (worker, ear, is_offered, is_player) = (p.worker, p.ear(), p.subscriber.is_some(), p.dialogue == Dialogue::OneShot);
        let Some(s) = p.subscriptions.iter_mut().find(|s| s.track == track) else { return };
        let mid = s.mid.take();
        s.fall_back();
        s.is_published = true;
        // A browser takes up a source that is new to it from its first packet; a player knows no other than its section's.
        if !is_player {
            (s.ssrc, s.rtx) = (ssrc, rtx);
        }
        let has_section = mid.is_some();
        s.mid = mid.filter(|_| !is_offered);
        self.mail(worker, Command::Unsubscribe { room, session: ear, track });
        if has_section && !is_offered && !is_player {
            self.sections_freed(session);
        } else {
            self.negotiate_hearing(session);
        }
    }
}
