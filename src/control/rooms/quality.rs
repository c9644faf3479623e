//! How well participants are connected, and which layers of a picture anybody wants at all.

use super::{Down, Participant, Rooms, mono};
use crate::base::id::{SessionId, TrackId};
use crate::session::quality::Sample;
use crate::wire::sdp::Kind;
use livekit_protocol as proto;
use proto::ConnectionQuality as Level;
use std::collections::BTreeMap;
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

/// What is known of one participant.
#[derive(Default)]
pub(in crate::control) struct Scores {
    /// 0 to 100, as the transmission rating factor R of ITU-T G.107.
    rating: Option<f32>,
    sampled_at: Option<Instant>,
    told: Option<Level>,
    /// By track: the best layer that its publisher was told to be wanted, and since when less would do.
    layers: BTreeMap<String, Demand>,
}

struct Demand {
    told: Option<u8>,
    less_since: Option<Instant>,
    born: Instant,
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

    fn level(&self, now: Instant) -> Option<Level> {
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
    let delay_ms = sample.rtt.as_secs_f32() * 500.0 + sample.jitter.as_secs_f32() * 2_000.0;
    let of_delay = 0.024 * delay_ms + 0.11 * (delay_ms - 177.3).max(0.0);
    let of_loss = 30.0 * (1.0 + 15.0 * sample.lost_up.max(sample.lost_down)).ln();
    (94.0 - of_delay - of_loss).clamp(0.0, 100.0)
}

/// MOS of a rating (ITU-T G.107, annex B), 1 to 4.5.
fn mean_opinion(r: f32) -> f32 {
    (1.0 + 0.035 * r + 7e-6 * r * (r - 60.0) * (100.0 - r)).clamp(1.0, 4.5)
}

impl Rooms {
    pub(super) fn sampled(&mut self, session: SessionId, sample: Sample) {
        if let Some(p) = self.participant(session) {
            p.scores.sampled(mono(), sample);
        }
    }

    /// Tells what has changed in the last seconds.
    pub(super) fn tick_quality(&mut self, now: Instant) {
        self.lower_layers(now);
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
        let Some(s) = p.subscriptions.iter().find(|s| s.track == track) else { return };
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

    /// Somebody wants something else of a track than before. More is told at once.
    pub(super) fn quality_wanted(&mut self, publisher: SessionId, sid: &str) {
        let wanted = self.best_wanted(sid, publisher);
        let now = mono();
        let Some(p) = self.participant(publisher) else { return };
        let Some(track) = p.tracks.iter().find(|t| t.info.sid == sid && t.info.r#type == proto::TrackType::Video as i32) else { return };
        let update = quality_update(&track.info, wanted);
        let demand = p.scores.layers.entry(sid.to_owned()).or_insert(Demand { told: Some(2), less_since: None, born: now });
        if wanted > demand.told {
            (demand.told, demand.less_since) = (wanted, None);
            self.tell(publisher, Down::SubscribedQualityUpdate(update));
        } else if wanted == demand.told {
            demand.less_since = None;
        } else {
            demand.less_since.get_or_insert(now);
        }
    }

    /// The best layer that anybody wants of a track.
    fn best_wanted(&mut self, sid: &str, publisher: SessionId) -> Option<u8> {
        let room = self.room_of(publisher)?;
        let all = room.participants.iter().flat_map(|p| &p.subscriptions);
        all.filter(|s| s.sid == sid && s.kind == Kind::Video && s.enabled && s.is_routed).map(|s| s.layer_max).max()
    }

    /// Tells publishers of layers that nobody has wanted for a while.
    fn lower_layers(&mut self, now: Instant) {
        let of = |p: &Participant| {
            let videos = p.tracks.iter().filter(|t| t.mid.is_some() && t.info.r#type == proto::TrackType::Video as i32);
            videos.map(|t| (p.session, t.info.sid.clone())).collect::<Vec<_>>()
        };
        let tracks: Vec<(SessionId, String)> = self.rooms.values().flat_map(|r| &r.participants).flat_map(of).collect();
        for (publisher, sid) in tracks {
            self.quality_wanted(publisher, &sid);
            let wanted = self.best_wanted(&sid, publisher);
            let Some(p) = self.participant(publisher) else { continue };
            let Some(track) = p.tracks.iter().find(|t| t.info.sid == sid) else { continue };
            let update = quality_update(&track.info, wanted);
            let Some(demand) = p.scores.layers.get_mut(&sid) else { continue };
            let patience = if now.duration_since(demand.born) < FIRST_LOWER_AFTER { FIRST_LOWER_AFTER } else { LOWER_AFTER };
            if demand.less_since.is_some_and(|at| now.duration_since(at) >= patience) {
                (demand.told, demand.less_since) = (wanted, None);
                self.tell(publisher, Down::SubscribedQualityUpdate(update));
            }
        }
        for p in self.rooms.values_mut().flat_map(|r| &mut r.participants) {
            let tracks = &p.tracks;
            p.scores.layers.retain(|sid, _| tracks.iter().any(|t| t.info.sid == *sid));
        }
    }
}

fn info(p: &Participant) -> proto::ConnectionQualityInfo {
    let quality = p.scores.told.unwrap_or(Level::Excellent) as i32;
    proto::ConnectionQualityInfo { participant_sid: p.sid.clone(), quality, score: p.scores.score() }
}

/// What a publisher may stop sending: every layer above the best that is wanted.
#[allow(deprecated, reason = "clients of some age read the old field")]
fn quality_update(track: &proto::TrackInfo, wanted: Option<u8>) -> proto::SubscribedQualityUpdate {
    let qualities: Vec<proto::SubscribedQuality> =
        (0..3u8).map(|q| proto::SubscribedQuality { quality: i32::from(q), enabled: wanted.is_some_and(|w| q <= w) }).collect();
    let codec = track.mime_type.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    proto::SubscribedQualityUpdate {
        track_sid: track.sid.clone(),
        subscribed_qualities: qualities.clone(),
        subscribed_codecs: vec![proto::SubscribedCodec { codec, qualities }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::time::Duration as Ours;

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
            let sample = Sample { lost_up, lost_down, rtt: Ours::from_millis(rtt), jitter: Ours::from_millis(jitter) };
            let now = mono();
            scores.sampled(now, sample);
            assert_eq!(scores.level(now), Some(want), "{name}: {:?}", scores.rating);
            assert!((1.0..=4.5).contains(&scores.score()));
            assert_eq!(scores.level(now + SAMPLE_WITHIN), Some(Level::Lost), "{name}");
        }
    }
}
