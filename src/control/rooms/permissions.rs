//! What participants may do, as it changes during a call, and whom publishers let have their tracks.

use super::{Down, Rooms};
use crate::base::id::SessionId;
use crate::control::tracks::may_publish;
use crate::shard::mail::Command;
use livekit_protocol as proto;

/// Entries of one `SubscriptionPermission`.
const LISTENERS_MAX: usize = 4_096;

/// Whether a publisher lets a participant have a track.
pub(super) fn is_allowed(listeners: Option<&proto::SubscriptionPermission>, sid: &str, identity: &str, track_sid: &str) -> bool {
    let Some(listeners) = listeners.filter(|l| !l.all_participants) else { return true };
    listeners.track_permissions.iter().any(|t| {
        let names = (!t.participant_sid.is_empty() && t.participant_sid == sid)
            || (!t.participant_identity.is_empty() && t.participant_identity == identity);
        names && (t.all_tracks || t.track_sids.iter().any(|s| s == track_sid))
    })
}

impl Rooms {
    /// A publisher says who may have its tracks (`SubscriptionPermission`).
    pub fn set_listeners(&mut self, session: SessionId, permission: proto::SubscriptionPermission) {
        let entries: usize = permission.track_permissions.iter().map(|t| 1 + t.track_sids.len()).sum();
        if entries > LISTENERS_MAX {
            return tracing::info!(session = session.0, entries, "a publisher names more listeners than are kept; it is not heeded");
        }
        let Some(p) = self.participant(session) else { return };
        p.listeners = Some(permission);
        self.review_listeners(session);
    }

    /// Gives and takes a publisher's tracks as its word says now.
    fn review_listeners(&mut self, publisher: SessionId) {
        let Some(room) = self.room_of(publisher) else { return };
        let room_id = room.id;
        let Some(me) = room.participants.iter().find(|p| p.session == publisher) else { return };
        let (listeners, publisher_sid) = (me.listeners.clone(), me.sid.clone());
        let mut changes = Vec::new();
        for p in &mut room.participants {
            let (key, ear, worker) = (p.session, p.ear(), p.worker);
            for s in p.subscriptions.iter_mut().filter(|s| s.publisher == publisher) {
                let allowed = is_allowed(listeners.as_ref(), &p.sid, &p.info.identity, &s.sid);
                if allowed != s.is_allowed {
                    s.is_allowed = allowed;
                    let was_routed = s.is_routed;
                    s.is_routed &= allowed;
                    let stop = (was_routed && !allowed).then_some(Command::Unsubscribe { room: room_id, session: ear, track: s.track });
                    if !allowed {
                        s.mid = None;
                    }
                    changes.push((key, worker, s.sid.clone(), allowed, stop));
                }
            }
        }
        for (key, worker, track_sid, allowed, stop) in changes {
            if let Some(stop) = stop {
                self.mail(worker, stop);
            }
            let update = proto::SubscriptionPermissionUpdate { participant_sid: publisher_sid.clone(), track_sid, allowed };
            self.tell(key, Down::SubscriptionPermissionUpdate(update));
            if !allowed {
                self.sections_freed(key);
            }
            self.negotiate_hearing(key);
        }
    }

    /// An administrator changes what a participant may do.
    pub(super) fn set_permission(&mut self, session: SessionId, permission: proto::ParticipantPermission) {
        let Some(p) = self.participant(session) else { return };
        let before = p.info.permission.replace(permission.clone()).unwrap_or_default();
        if before == permission {
            return;
        }
        let grants = &mut p.claims.video;
        grants.can_subscribe = Some(permission.can_subscribe);
        grants.can_publish = Some(permission.can_publish);
        grants.can_publish_data = Some(permission.can_publish_data);
        grants.can_update_own_metadata = Some(permission.can_update_metadata);
        grants.hidden = permission.hidden;
        let names = permission.can_publish_sources.iter().filter_map(|s| proto::TrackSource::try_from(*s).ok());
        grants.can_publish_sources = names.map(|s| s.as_str_name().to_ascii_lowercase()).collect();
        let (key, worker) = (p.session, p.worker);
        let sessions: Vec<SessionId> = p.sessions().collect();
        let forbidden: Vec<String> =
            p.tracks.iter().filter(|t| !may_publish(Some(&permission), t.info.source)).map(|t| t.info.sid.clone()).collect();
        for session in sessions {
            self.mail(worker, Command::Permit { session, can_publish_data: permission.can_publish_data });
        }
        for sid in forbidden {
            self.take_track(key, &sid);
        }
        if !permission.can_publish_data {
            self.take_data_tracks(key);
        }
        match (before.can_subscribe, permission.can_subscribe) {
            (true, false) => {
                self.unsubscribe_from_all(key);
                self.unsubscribe_from_data(key);
            }
            (false, true) => {
                self.subscribe_to_all(key);
                self.negotiate_hearing(key);
            }
            _ => {}
        }
        self.announce(key, true);
        self.refresh_token(key);
        if before.hidden != permission.hidden {
            self.visibility_changed(key, permission.hidden);
        }
    }

    /// The others are told of somebody who was not to be seen before, or is not from now on.
    fn visibility_changed(&mut self, session: SessionId, is_hidden: bool) {
        let Some(name) = self.places.get(&session).cloned() else { return };
        if let Some(room) = self.rooms.get_mut(&name) {
            room.has_changed = true;
        }
        let Some(p) = self.participant(session) else { return };
        let mut info = p.info.clone();
        if is_hidden {
            info.state = proto::participant_info::State::Disconnected as i32;
            info.tracks.clear();
            self.broadcast(&name, session, &Down::Update(proto::ParticipantUpdate { participants: vec![info] }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_by_sid_by_identity_and_by_track() {
        let entry = |sid: &str, identity: &str, all_tracks: bool, tracks: &[&str]| proto::TrackPermission {
            participant_sid: sid.into(),
            participant_identity: identity.into(),
            all_tracks,
            track_sids: tracks.iter().map(|t| (*t).to_owned()).collect(),
        };
        let some = proto::SubscriptionPermission {
            all_participants: false,
            track_permissions: vec![entry("PA_bob", "", true, &[]), entry("", "eve", false, &["TR_1"])],
        };
        let all = proto::SubscriptionPermission { all_participants: true, ..some.clone() };
        let rows = [
            (None, "PA_x", "x", "TR_1", true),
            (Some(&all), "PA_x", "x", "TR_1", true),
            (Some(&some), "PA_bob", "bob", "TR_2", true),
            (Some(&some), "PA_eve", "eve", "TR_1", true),
            (Some(&some), "PA_eve", "eve", "TR_2", false),
            (Some(&some), "PA_x", "x", "TR_1", false),
            (Some(&some), "", "", "TR_1", false),
        ];
        for (listeners, sid, identity, track, want) in rows {
            assert_eq!(is_allowed(listeners, sid, identity, track), want, "{sid} {track}");
        }
    }
}
