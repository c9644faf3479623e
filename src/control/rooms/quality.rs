//! How well participants are connected, and which layers of a picture anybody wants at all.

use super::{Down, Participant, Rooms, Subscription, Track, mono};
use crate::base::id::{SessionId, TrackId};
use crate::control::tracks::kind_of;
use crate::session::quality::Sample;
use crate::wire::sdp::Kind;
use livekit_protocol as proto;
use proto::ConnectionQuality as Level;
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

/// How long nobody must want a layer before its publisher may stop it.
const LOWER_AFTER: Duration = Duration::from_secs(5);
/// The same right after a track was published: its first hearers are on their way.
const FIRST_LOWER_AFTER: Duration = Duration::from_secs(10);
/// How much of a new sample counts: bad news come at once, good ones take a while.
const UP: f32 = 0.4;
const DOWN: f32 = 0.8;
/// Samples are taken every 5 s; a participant whose samples stay away for so long is lost.
const SAMPLE_WITHIN: Duration = Duration::from_secs(12);
/// Assumed until a client has told.
const RTT_UNKNOWN: Duration = Duration::from_millis(100);

/// What is known of one participant.
#[derive(Default)]
pub(in crate::control) struct Scores {
    /// 0 to 100, as the transmission rating factor R of ITU-T G.107.
    rating: Option<f32>,
    sampled_at: Option<Instant>,
    told: Option<Level>,
}

/// What was measured of a participant's transports: the latest of each, and all that passed.
#[derive(Default)]
pub(in crate::control) struct Samples {
    latest: Vec<(SessionId, Instant, Sample)>,
    pub(super) bytes_up: u64,
    pub(super) bytes_down: u64,
}

impl Samples {
    fn take(&mut self, now: Instant, session: SessionId, sample: Sample) {
        self.latest.retain(|(of, ..)| *of != session);
        self.latest.push((session, now, sample));
        self.add(&sample);
    }

    pub(super) fn add(&mut self, sample: &Sample) {
        self.bytes_up += sample.up.bytes;
        self.bytes_down += sample.down.bytes;
    }

    /// Those of the last seconds.
    pub(super) fn fresh(&self, now: Instant) -> impl Iterator<Item = &Sample> {
        self.latest.iter().filter(move |(_, at, _)| now.duration_since(*at) < SAMPLE_WITHIN).map(|(.., sample)| sample)
    }
}

/// Which layers of a track its publisher was told to be wanted.
pub(in crate::control) struct Demand {
    told: Option<u8>,
    less_since: Option<Instant>,
    /// When it was first looked at.
    born: Option<Instant>,
}

impl Demand {
    /// Publishers begin with all layers,
    pub(super) fn of_all_layers() -> Self {
        Self { told: Some(2), less_since: None, born: None }
    }

    /// and with none of a backup.
    pub(super) fn of_none() -> Self {
        Self { told: None, ..Self::of_all_layers() }
    }

    /// Somebody wants this layer. Whether the publisher is to be told.
    fn wanted(&mut self, now: Instant, layer: Option<u8>) -> bool {
        self.born.get_or_insert(now);
        if layer > self.told {
            (self.told, self.less_since) = (layer, None);
            return true;
        }
        if layer == self.told {
            self.less_since = None;
        } else {
            self.less_since.get_or_insert(now);
        }
        false
    }

    /// This is the best layer that anybody wants. Whether the publisher is to be told.
    fn review(&mut self, now: Instant, best: Option<u8>) -> bool {
        let is_more = self.wanted(now, best);
        let is_young = self.born.is_some_and(|born| now.duration_since(born) < FIRST_LOWER_AFTER);
        let patience = if is_young { FIRST_LOWER_AFTER } else { LOWER_AFTER };
        if is_more || self.less_since.is_none_or(|at| now.duration_since(at) < patience) {
            return is_more;
        }
        (self.told, self.less_since) = (best, None);
        true
    }
}

impl Scores {
    fn sampled(&mut self, now: Instant, sample: Sample) {
        let rating = rating(sample);
        self.sampled_at = Some(now);
        self.rating = Some(match self.rating {
            Some(before) => before + (rating - before) * if rating < before { DOWN } else { UP },
            None => rating,
        });
    }

    pub(super) fn level(&self, now: Instant) -> Option<Level> {
        let at = self.sampled_at?;
        if now.duration_since(at) >= SAMPLE_WITHIN {
            return Some(Level::Lost);
        }
        Some(match self.rating? {
            r if r > 80.0 => Level::Excellent,
            r if r > 40.0 => Level::Good,
            _ => Level::Poor,
        })
    }

    fn score(&self) -> f32 {
        mean_opinion(self.rating.unwrap_or(0.0))
    }
}

/// The E-model of ITU-T G.107, simplified to what delay and loss cost: delay costs little until conversation suffers, loss
/// costs at once.
fn rating(sample: Sample) -> f32 {
    let rtt = sample.rtt.unwrap_or(RTT_UNKNOWN);
    let delay_ms = rtt.as_secs_f32() * 500.0 + sample.jitter.as_secs_f32() * 2_000.0;
    let of_delay = 0.024 * delay_ms + 0.11 * (delay_ms - 177.3).max(0.0);
    let of_loss = 30.0 * (1.0 + 15.0 * sample.up.lost.unwrap_or(0.0).max(sample.down.lost.unwrap_or(0.0))).ln();
    (94.0 - of_delay - of_loss).clamp(0.0, 100.0)
}

/// MOS of a rating (ITU-T G.107, annex B), 1 to 4.5.
fn mean_opinion(r: f32) -> f32 {
    (1.0 + 0.035 * r + 7e-6 * r * (r - 60.0) * (100.0 - r)).clamp(1.0, 4.5)
}

impl Rooms {
    pub(super) fn sampled(&mut self, session: SessionId, sample: Sample) {
        self.around.gauges.of_participants.sampled(&sample);
        let Some(p) = self.participant(session) else { return self.passed_lately(session, &sample) };
        p.scores.sampled(mono(), sample);
        p.samples.take(mono(), session, sample);
    }

    /// Tells what has changed in the last seconds.
    pub(super) fn tick_quality(&mut self, now: Instant) {
        self.review_layers(now);
        let mut changed = Vec::new();
        for (name, room) in &mut self.rooms {
            for p in &mut room.participants {
                let level = p.scores.level(now);
                if level.is_some() && p.scores.told != level {
                    p.scores.told = level;
                    changed.push((name.clone(), p.session, info(p)));
                }
            }
        }
        for (name, session, info) in changed {
            let hearers = self.rooms.get(&name).into_iter().flat_map(|r| &r.participants);
            let concerned = hearers.filter(|p| p.session == session || p.subscriptions.iter().any(|s| s.publisher == session));
            let sessions: Vec<SessionId> = concerned.map(|p| p.session).collect();
            for to in sessions {
                self.tell(to, Down::ConnectionQuality(proto::ConnectionQualityUpdate { updates: vec![info.clone()] }));
            }
        }
    }

    /// A client's path takes nothing of a track any longer, or again.
    pub(super) fn stream_state(&mut self, session: SessionId, track: TrackId, is_paused: bool) {
        use proto::StreamState::{Active, Paused};
        let Some(p) = self.participant(session) else { return };
        let Some(s) = p.subscriptions.iter_mut().find(|s| s.track == track) else { return };
        s.is_paused = is_paused;
        let state = if is_paused { Paused } else { Active } as i32;
        let info = proto::StreamStateInfo { participant_sid: s.publisher_sid.clone(), track_sid: s.sid.clone(), state };
        self.tell(session, Down::StreamStateUpdate(proto::StreamStateUpdate { stream_states: vec![info] }));
    }

    /// A client is back: it hears how everybody it subscribes to is connected.
    pub(super) fn tell_all_qualities(&mut self, session: SessionId) {
        let Some(room) = self.room_of(session) else { return };
        let Some(me) = room.participants.iter().find(|p| p.session == session) else { return };
        let concerns = |p: &&Participant| p.session == session || me.subscriptions.iter().any(|s| s.publisher == p.session);
        let updates: Vec<_> = room.participants.iter().filter(concerns).filter(|p| p.scores.told.is_some()).map(info).collect();
        if !updates.is_empty() {
            self.tell(session, Down::ConnectionQuality(proto::ConnectionQualityUpdate { updates }));
        }
    }

    // ---- layers ---------------------------------------------------------------------------------------------------

    /// Somebody wants this layer of a track from now on. More than before is told at once; whether less will do, the tick sees.
    pub(super) fn layer_wanted(&mut self, publisher: SessionId, track: TrackId, layer: Option<u8>) {
        let now = mono();
        let Some(p) = self.participant(publisher) else { return };
        let Some(track) = p.tracks.iter_mut().find(|t| t.id == track && is_video(&t.info)) else { return };
        if track.demand.wanted(now, layer) {
            let sid = track.info.sid.clone();
            let update = quality_update(&p.tracks, &sid);
            self.tell(publisher, Down::SubscribedQualityUpdate(update));
        }
    }

    /// A client is back: what it was told of its layers may have been lost.
    pub(super) fn tell_layers(&mut self, session: SessionId) {
        let Some(p) = self.participant(session) else { return };
        let videos = p.tracks.iter().filter(|t| t.is_published() && is_video(&t.info));
        let updates: Vec<_> = videos.map(|t| quality_update(&p.tracks, &t.info.sid)).collect();
        for update in updates {
            self.tell(session, Down::SubscribedQualityUpdate(update));
        }
    }

    /// Tells publishers of layers that nobody has wanted for a while.
    fn review_layers(&mut self, now: Instant) {
        let mut updates = Vec::new();
        for room in self.rooms.values_mut() {
            let mut best: HashMap<TrackId, u8> = HashMap::new();
            let wanted = |s: &&Subscription| s.kind == Kind::Video && (s.is_routed || !s.is_published);
            for s in room.participants.iter().flat_map(|p| &p.subscriptions).filter(wanted) {
                if let Some(layer) = s.layer_wanted() {
                    best.entry(s.track).and_modify(|b| *b = layer.max(*b)).or_insert(layer);
                }
            }
            for p in &mut room.participants {
                let videos = p.tracks.iter_mut().filter(|t| (t.mid.is_some() || t.is_backup) && is_video(&t.info));
                let changed = videos.filter_map(|t| t.demand.review(now, best.get(&t.id).copied()).then(|| t.info.sid.clone()));
                let changed: BTreeSet<String> = changed.collect();
                updates.extend(changed.iter().map(|sid| (p.session, quality_update(&p.tracks, sid))));
            }
        }
        for (publisher, update) in updates {
            self.tell(publisher, Down::SubscribedQualityUpdate(update));
        }
    }
}

fn is_video(info: &proto::TrackInfo) -> bool {
    kind_of(info) == Kind::Video
}

fn info(p: &Participant) -> proto::ConnectionQualityInfo {
    let quality = p.scores.told.unwrap_or(Level::Excellent) as i32;
    proto::ConnectionQualityInfo { participant_sid: p.sid.clone(), quality, score: p.scores.score() }
}

/// What a publisher may stop sending of a track: in each codec, every layer above the best that is wanted.
#[allow(deprecated, reason = "clients of some age read the old field")]
fn quality_update(tracks: &[Track], sid: &str) -> proto::SubscribedQualityUpdate {
    let is_enabled = |t: &Track, q: u8| t.demand.told.is_some_and(|wanted| q <= wanted);
    let quality = |t: &Track, q: u8| proto::SubscribedQuality { quality: i32::from(q), enabled: is_enabled(t, q) };
    let codec = |t: &Track| proto::SubscribedCodec {
        codec: t.info.mime_type.rsplit('/').next().unwrap_or_default().to_ascii_lowercase(),
        qualities: (0..3).map(|q| quality(t, q)).collect(),
    };
    let subscribed_codecs: Vec<_> = tracks.iter().filter(|t| t.info.sid == sid).map(codec).collect();
    proto::SubscribedQualityUpdate {
        track_sid: sid.to_owned(),
        subscribed_qualities: subscribed_codecs.first().map(|c| c.qualities.clone()).unwrap_or_default(),
        subscribed_codecs,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::Duration as Ours;
    use crate::session::quality::Way;

    #[test]
    fn levels_of_typical_connections() {
        let rows = [
            ("a good one", 0.0, 0.0, 30, 5, Level::Excellent),
            ("a far one", 0.0, 0.0, 250, 10, Level::Excellent),
            ("some loss", 0.05, 0.0, 50, 10, Level::Good),
            ("loss one way counts as well as the other", 0.0, 0.05, 50, 10, Level::Good),
            ("much loss", 0.4, 0.0, 100, 30, Level::Poor),
            ("far and shaky", 0.02, 0.0, 600, 120, Level::Poor),
        ];
        for (name, lost_up, lost_down, rtt, jitter, want) in rows {
            let mut scores = Scores::default();
            let way = |lost| Way { lost: Some(lost), ..Way::default() };
            let (up, down, rtt) = (way(lost_up), way(lost_down), Some(Ours::from_millis(rtt)));
            let sample = Sample { over: Ours::from_secs(5), up, down, rtt, jitter: Ours::from_millis(jitter) };
            let now = mono();
            scores.sampled(now, sample);
            assert_eq!(scores.level(now), Some(want), "{name}: {:?}", scores.rating);
            assert!((1.0..=4.5).contains(&scores.score()));
            assert_eq!(scores.level(now + SAMPLE_WITHIN), Some(Level::Lost), "{name}");
        }
    }
}
