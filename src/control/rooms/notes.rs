//! What is told of participants afterwards: to the audit log, and to whoever looks at the dashboard.

use super::{Participant, Rooms, mono, wall};
use crate::base::id::SessionId;
use crate::control::audit::{Entry, VALUE_MAX, stamp};
use crate::control::tracks::source_name;
use crate::session::quality::Sample;
use livekit_protocol as proto;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Entries that the dashboard shows.
const LATEST_MAX: usize = 200;
/// How long the last figures of somebody who left are waited for.
const REST_WITHIN: Duration = Duration::from_secs(2);

/// The latest entries, and those of people who left whose last figures are on their way.
#[derive(Default)]
pub(super) struct Notes {
    /// With the moment of each, milliseconds since 1970.
    pub(super) latest: VecDeque<(u64, Entry)>,
    leaving: Vec<Leaving>,
}

impl Notes {
    pub(super) fn awaits_figures(&self) -> bool {
        !self.leaving.is_empty()
    }
}

struct Leaving {
    entry: Entry,
    since: Instant,
    /// Its transports that have not told yet.
    transports: Vec<SessionId>,
}

impl Rooms {
    /// What is known of a participant, for an entry about it.
    fn about(&self, event: &'static str, room: &str, p: &Participant) -> Entry {
        let short = |value: &str| value.chars().take(VALUE_MAX).collect();
        let kept = self.around.audit.kept(&p.info.attributes);
        let attributes = kept.into_iter().map(|(key, value)| (key.to_owned(), short(value))).collect();
        Entry {
            event,
            room: room.to_owned(),
            identity: Some(p.info.identity.clone()),
            sid: Some(p.sid.clone()),
            name: Some(p.info.name.clone()).filter(|name| !name.is_empty()),
            path: p.path.map(crate::shard::mail::PathKind::name),
            attributes,
            ..Entry::default()
        }
    }

    fn note(&mut self, mut entry: Entry) {
        if entry.time.is_empty() {
            entry.time = stamp();
        }
        self.around.audit.push(entry.clone());
        if self.notes.latest.len() >= LATEST_MAX {
            self.notes.latest.pop_front();
        }
        self.notes.latest.push_back((wall().as_millis() as u64, entry));
    }

    /// Notes something about a participant.
    pub(super) fn note_of(&mut self, session: SessionId, event: &'static str, change: impl FnOnce(&Participant, Entry) -> Entry) {
        let Some(name) = self.places.get(&session) else { return };
        let present = self.rooms.get(name).and_then(|r| r.participants.iter().find(|p| p.sessions().any(|s| s == session)));
        let Some(p) = present else { return };
        let entry = change(p, self.about(event, name, p));
        self.note(entry);
    }

    pub(super) fn note_joined(&mut self, session: SessionId) {
        self.note_of(session, "joined", |p, entry| {
            let client = Some(p.client.clone()).filter(|client| !client.is_empty());
            Entry { address: p.address, client, ..entry }
        });
    }

    pub(super) fn note_room(&mut self, event: &'static str, room: &str) {
        self.note(Entry { event, room: room.to_owned(), ..Entry::default() });
    }

    pub(super) fn note_track(&mut self, session: SessionId, event: &'static str, track: &proto::TrackInfo) {
        self.note_of(session, event, |_, entry| Entry { source: Some(source_name(track.source)), ..entry });
    }

    /// Somebody's consent, or what else of its attributes is kept, is another one.
    pub(super) fn note_attributes(&mut self, session: SessionId) {
        self.note_of(session, "attributes", |_, entry| entry);
    }

    /// Somebody was moderated: by whom, and how.
    pub fn note_moderated(&mut self, by: &str, action: &str, room: &str, identity: &str) {
        let identity = Some(identity.to_owned()).filter(|identity| !identity.is_empty());
        let (by, action) = (Some(by.to_owned()), Some(action.to_owned()));
        self.note(Entry { event: "moderated", room: room.to_owned(), identity, by, action, ..Entry::default() });
    }

    /// Somebody has left. Whose transport ends now is noted together with what it still tells.
    pub(super) fn note_left(&mut self, room: &str, gone: &Participant, reason: proto::DisconnectReason, ends: bool) {
        let entry = Entry {
            // It has left now, whenever its transport tells the rest.
            time: stamp(),
            reason: Some(reason.as_str_name().to_ascii_lowercase()),
            seconds: Some(mono().duration_since(gone.came_at).as_secs()),
            bytes_up: Some(gone.samples.bytes_up),
            bytes_down: Some(gone.samples.bytes_down),
            ..self.about("left", room, gone)
        };
        if ends {
            self.notes.leaving.push(Leaving { entry, since: mono(), transports: gone.sessions().collect() });
        } else {
            self.note(entry);
        }
    }

    /// A transport has ended; what passed over it since its last sample.
    pub(super) fn closed(&mut self, session: SessionId, rest: &Sample) {
        self.passed_lately(session, rest);
        let Some(at) = self.notes.leaving.iter().position(|l| l.transports.contains(&session)) else { return };
        let leaving = &mut self.notes.leaving[at];
        leaving.transports.retain(|s| *s != session);
        if leaving.transports.is_empty() {
            let entry = self.notes.leaving.remove(at).entry;
            self.note(entry);
        }
    }

    /// What passed over a transport whose participant has just left.
    pub(super) fn passed_lately(&mut self, session: SessionId, sample: &Sample) {
        if let Some(leaving) = self.notes.leaving.iter_mut().find(|l| l.transports.contains(&session)) {
            let add = |sum: &mut Option<u64>, more: u64| *sum = sum.map(|sum| sum + more);
            add(&mut leaving.entry.bytes_up, sample.up.bytes);
            add(&mut leaving.entry.bytes_down, sample.down.bytes);
        }
    }

    /// Notes those whose last figures did not come; all of them, when the server stops.
    pub(super) fn note_leaving(&mut self, all: bool) {
        let now = mono();
        let is_over = |l: &mut Leaving| all || now.duration_since(l.since) >= REST_WITHIN;
        let over: Vec<Leaving> = self.notes.leaving.extract_if(.., is_over).collect();
        for leaving in over {
            self.note(leaving.entry);
        }
    }
}
