//! What the dashboard shows of rooms: a picture of this moment, as its JSON says it.

use super::{Participant, Rooms, Subscription, mono};
use crate::control::audit::Entry;
use crate::control::tracks::{kind_of, source_name};
use crate::session::quality::{Sample, Way};
use crate::shard::mail::PathKind;
use crate::wire::sdp::Kind;
use livekit_protocol as proto;
use proto::ConnectionQuality as Level;
use serde::Serialize;
use std::collections::HashMap;
use std::time::Instant;

/// All rooms, and what happened in them lately.
pub struct Overview {
    pub rooms: Vec<RoomView>,
    /// Oldest first.
    pub events: Vec<EventView>,
}

#[derive(Serialize)]
pub struct EventView {
    /// Milliseconds since 1970.
    at_ms: u64,
    level: &'static str,
    text: String,
    room: Option<String>,
}

#[derive(Serialize)]
pub struct RoomView {
    pub name: String,
    pub sid: String,
    /// Seconds since 1970.
    pub created_at: i64,
    pub participants: Vec<ParticipantView>,
}

impl ParticipantView {
    /// Nobody sees it, and it may return.
    pub fn is_away(&self) -> bool {
        self.state == "away"
    }
}

#[derive(Serialize)]
pub struct ParticipantView {
    identity: String,
    name: String,
    sid: String,
    /// `away` is who has dropped out and may return.
    state: &'static str,
    joined_at: i64,
    hidden: bool,
    path: Option<&'static str>,
    worker: u8,
    client: Option<String>,
    pub bits_in: f64,
    pub bits_out: f64,
    lost_up: f32,
    lost_down: f32,
    rtt_ms: Option<f64>,
    jitter_ms: Option<f64>,
    quality: Option<&'static str>,
    pub publishes: Vec<TrackView>,
    subscribes: Vec<SubscriptionView>,
}

#[derive(Serialize)]
pub struct TrackView {
    sid: String,
    source: &'static str,
    kind: &'static str,
    codec: String,
    muted: bool,
}

#[derive(Serialize)]
struct SubscriptionView {
    publisher: String,
    track: String,
    kind: &'static str,
    /// 0 is the smallest; none before the first picture.
    layer: Option<u8>,
    /// The best that it wants.
    layer_max: u8,
    paused: bool,
}

impl EventView {
    #[cfg(test)]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl Rooms {
    pub fn overview(&self) -> Overview {
        let now = mono();
        let rooms = self.rooms.values().map(|room| {
            let identities: HashMap<&str, &str> = room.participants.iter().map(|p| (p.sid.as_str(), p.info.identity.as_str())).collect();
            let identity_of = |sid: &str| identities.get(sid).copied().unwrap_or_default().to_owned();
            let here = room.participants.iter().map(|p| (p, state_of(p)));
            let all = here.chain(room.absent.iter().map(|a| (&a.participant, "away")));
            RoomView {
                name: room.info.name.clone(),
                sid: room.info.sid.clone(),
                created_at: room.info.creation_time,
                participants: all.map(|(p, state)| view(p, state, now, &identity_of)).collect(),
            }
        });
        Overview { rooms: rooms.collect(), events: self.notes.latest.iter().map(|(at, entry)| event(*at, entry)).collect() }
    }
}

/// What happened, as a sentence.
fn event(at_ms: u64, entry: &Entry) -> EventView {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (who, reason) = (text(&entry.identity), text(&entry.reason));
    let is_lost = ["connection_timeout", "signal_close", "media_failure", "state_mismatch"].contains(&reason.as_str());
    let (level, text) = match entry.event {
        "room_started" => ("info", "the room was opened".to_owned()),
        "room_finished" => ("info", "the room is over".to_owned()),
        "joined" => ("info", format!("{who} joined")),
        "returned" => ("info", format!("{who} is back")),
        "path" => ("info", format!("{who}: media over {}", entry.path.unwrap_or("?"))),
        "published" => ("info", format!("{who} publishes {}", entry.source.unwrap_or("?"))),
        "unpublished" => ("info", format!("{who} no longer publishes {}", entry.source.unwrap_or("?"))),
        "left" => {
            let after = entry.seconds.unwrap_or_default();
            (if is_lost { "warn" } else { "info" }, format!("{who} left after {after} s ({})", reason.replace('_', " ")))
        }
        "moderated" => ("warn", format!("{}: {} {who}", text(&entry.by), text(&entry.action)).trim_end().to_owned()),
        other => ("info", format!("{who}: {other}")),
    };
    EventView { at_ms, level, text, room: Some(entry.room.clone()).filter(|room| !room.is_empty()) }
}

fn state_of(p: &Participant) -> &'static str {
    use proto::participant_info::State;
    match State::try_from(p.info.state) {
        Ok(State::Active) => "active",
        Ok(State::Joined) => "joined",
        _ => "joining",
    }
}

fn view(p: &Participant, state: &'static str, now: Instant, identity_of: &dyn Fn(&str) -> String) -> ParticipantView {
    let samples: Vec<&Sample> = p.samples.fresh(now).collect();
    let bits = |way: fn(&Sample) -> &Way| -> f64 {
        let of = |s: &&Sample| way(s).bytes as f64 * 8.0 / s.over.as_secs_f64().max(f64::MIN_POSITIVE);
        samples.iter().map(of).sum()
    };
    let lost = |way: fn(&Sample) -> &Way| samples.iter().filter_map(|s| way(s).lost).fold(0.0, f32::max);
    let ms = |duration: std::time::Duration| duration.as_secs_f64() * 1_000.0;
    let quality = p.scores.level(now).map(|level| match level {
        Level::Excellent => "excellent",
        Level::Good => "good",
        Level::Poor => "poor",
        Level::Lost => "lost",
    });
    ParticipantView {
        identity: p.info.identity.clone(),
        name: p.info.name.clone(),
        sid: p.sid.clone(),
        state,
        joined_at: p.info.joined_at,
        hidden: p.is_hidden(),
        path: p.path.map(PathKind::name),
        worker: p.worker.0,
        client: Some(p.client.clone()).filter(|client| !client.is_empty()),
        bits_in: bits(|s| &s.up),
        bits_out: bits(|s| &s.down),
        lost_up: lost(|s| &s.up),
        lost_down: lost(|s| &s.down),
        rtt_ms: samples.iter().filter_map(|s| s.rtt).max().map(ms),
        jitter_ms: samples.iter().map(|s| s.jitter).max().map(ms),
        quality,
        publishes: p.tracks.iter().filter(|t| t.is_published()).map(|t| track(&t.info)).collect(),
        subscribes: p.subscriptions.iter().filter(|s| s.is_routed).map(|s| subscription(s, identity_of)).collect(),
    }
}

fn name_of(kind: Kind) -> &'static str {
    if kind == Kind::Video { "video" } else { "audio" }
}

fn track(info: &proto::TrackInfo) -> TrackView {
    TrackView {
        sid: info.sid.clone(),
        source: source_name(info.source),
        kind: name_of(kind_of(info)),
        codec: info.mime_type.rsplit('/').next().unwrap_or_default().to_ascii_lowercase(),
        muted: info.muted,
    }
}

fn subscription(s: &Subscription, identity_of: &dyn Fn(&str) -> String) -> SubscriptionView {
    SubscriptionView {
        publisher: identity_of(&s.publisher_sid),
        track: s.sid.clone(),
        kind: name_of(s.kind),
        layer: s.layer.filter(|_| s.kind == Kind::Video),
        layer_max: s.layer_max,
        paused: s.is_paused || !s.enabled,
    }
}
