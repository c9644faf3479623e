//! Who speaks, by the levels that clients write on their audio packets (RFC 6464).
//!
//! A participant is active in an interval when enough of its packets are louder than a threshold. Changes only.

use crate::base::id::SessionId;
use crate::base::time::{Duration, Instant};

/// How often a change is looked for.
pub const INTERVAL: Duration = Duration::from_millis(400);
/// Louder than this counts, -dBov.
const ACTIVE_LEVEL: u8 = 35;
/// Share of the interval's packets that must be loud, per cent.
const ACTIVE_SHARE: u32 = 40;
/// Packets of one interval at 20 ms each.
const PACKETS_EXPECTED: u32 = 20;

/// A new state of one participant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    pub session: SessionId,
    /// 0 silent, 1 as loud as can be; in steps of 1/8.
    pub level: f32,
    pub active: bool,
}

struct Voice {
    session: SessionId,
    loud: u32,
    loudest: u8,
    reported: f32,
}

#[derive(Default)]
pub struct Speakers {
    voices: Vec<Voice>,
    due: Option<Instant>,
}

impl Speakers {
    /// Takes the level of one packet, -dBov.
    pub fn observe(&mut self, now: Instant, session: SessionId, level: u8) {
        self.due.get_or_insert(now + INTERVAL);
        let at = self.voices.iter().position(|v| v.session == session).unwrap_or_else(|| {
            self.voices.push(Voice { session, loud: 0, loudest: 127, reported: 0.0 });
            self.voices.len() - 1
        });
        let voice = &mut self.voices[at];
        if level <= ACTIVE_LEVEL {
            voice.loud += 1;
        }
        voice.loudest = voice.loudest.min(level);
    }

    pub fn forget(&mut self, session: SessionId) {
        self.voices.retain(|v| v.session != session);
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.due
    }

    /// Changes since the last call, when the interval is over.
    pub fn wake(&mut self, now: Instant, out: &mut Vec<Change>) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        let mut is_anyone_active = false;
        for voice in &mut self.voices {
            let active = voice.loud * 100 >= PACKETS_EXPECTED * ACTIVE_SHARE;
            let level = if active { quantised(voice.loudest) } else { 0.0 };
            if level != voice.reported {
                out.push(Change { session: voice.session, level, active });
                voice.reported = level;
            }
            is_anyone_active |= active;
            voice.loud = 0;
            voice.loudest = 127;
        }
        // Silence is looked at once more so that the last speaker is taken back, then the clock stops.
        self.due = is_anyone_active.then_some(now + INTERVAL);
    }
}

/// Loudness from -dBov, in steps of 1/8 and never zero for a speaker.
fn quantised(level: u8) -> f32 {
    let linear = 10f32.powf(-f32::from(level) / 20.0);
    ((linear * 8.0).ceil() / 8.0).clamp(0.125, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_voice_comes_and_goes_once() {
        let mut speakers = Speakers::default();
        let mut changes = Vec::new();
        for ms in (0..2_000).step_by(20) {
            let now = Instant::from_millis(ms);
            let level = if (400..1_200).contains(&ms) { 10 } else { 90 };
            speakers.observe(now, SessionId(1), level);
            speakers.observe(now, SessionId(2), 127);
            if speakers.deadline().is_some_and(|d| d <= now) {
                speakers.wake(now, &mut changes);
            }
        }
        let states: Vec<_> = changes.iter().map(|c| (c.session.0, c.active)).collect();
        assert_eq!(states, [(1, true), (1, false)]);
        assert!(changes[0].level > 0.0 && changes[1].level == 0.0);
    }

    #[test]
    fn a_single_click_is_no_speech() {
        let mut speakers = Speakers::default();
        let mut changes = Vec::new();
        speakers.observe(Instant::from_millis(0), SessionId(1), 0);
        speakers.wake(Instant::from_millis(400), &mut changes);
        assert!(changes.is_empty());
        assert_eq!(speakers.deadline(), None, "the clock stops in silence");
    }
}
