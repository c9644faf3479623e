//! Which layers of a track pass to one hearer. A simulcast layer is a stream of its own: switching happens on the first
//! packet of a key frame. Spatial layers of one stream: up on a key frame, down with any picture. Temporal layers: up where
//! the stream says that nothing is missed, down with any frame.

use crate::wire::rtp::FrameInfo;

/// Layers of one track: low, medium, high; simulcast streams or spatial layers of one stream.
pub const LAYERS_MAX: usize = 3;
/// No temporal layer is too high.
pub const TEMPORAL_ALL: u8 = 7;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes; `spatial_max` is the highest spatial layer that does.
    Forward {
        spatial_max: u8,
    },
    /// It passes, and the hearer's stream goes on from this packet's source.
    Start {
        spatial_max: u8,
        temporal_max: u8,
    },
    /// A layer of this stream that the hearer does not get: what follows closes up.
    Skip,
    /// Late, and of another stream than the one that passes now: it passes if its number is still waited for.
    Late,
    Drop,
}

/// What a hearer has use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub layer_max: u8,
    pub temporal_max: u8,
}

impl Wanted {
    pub const ALL: Wanted = Wanted { layer_max: LAYERS_MAX as u8 - 1, temporal_max: TEMPORAL_ALL };
}

/// The choice of layers for one hearer of one track.
#[derive(Debug)]
pub enum Selector {
    /// Audio: everything passes.
    PassThrough {
        enabled: bool,
        has_started: bool,
    },
    Video(Video),
}

#[derive(Debug)]
pub struct Video {
    wanted: Option<Wanted>,
    /// Simulcast stream that passes, and the one that should.
    current: Option<u8>,
    target: Option<u8>,
    /// Highest spatial layer of the stream that passes.
    spatial: u8,
    /// The stream is known to carry several.
    is_layered: bool,
    temporal: u8,
}

impl Selector {
    pub fn new(is_video: bool) -> Self {
        if is_video {
            let (spatial, temporal) = (LAYERS_MAX as u8 - 1, TEMPORAL_ALL);
            Self::Video(Video { wanted: Some(Wanted::ALL), current: None, target: None, spatial, is_layered: false, temporal })
        } else {
            Self::PassThrough { enabled: true, has_started: false }
        }
    }

    /// `None` pauses.
    pub fn set_wanted(&mut self, new: Option<Wanted>) {
        match self {
            Self::PassThrough { enabled, has_started } => {
                *enabled = new.is_some();
                *has_started &= *enabled;
            }
            Self::Video(video) => {
                video.wanted = new;
                if new.is_none() {
                    // What comes after a pause starts with a picture of its own.
                    video.current = None;
                    video.target = None;
                }
            }
        }
    }

    /// What comes next follows a pause.
    pub fn restart(&mut self) {
        match self {
            Self::PassThrough { has_started, .. } => *has_started = false,
            Self::Video(video) => video.current = None,
        }
    }

    /// The stream that passes now.
    pub fn current(&self) -> Option<u8> {
        match self {
            Self::PassThrough { enabled, .. } => enabled.then_some(0),
            Self::Video(video) => video.current,
        }
    }

    /// Streams that it needs of those that are `live`: the one that passes, and the one that should.
    pub fn demand(&mut self, live: u8) -> u8 {
        match self {
            Self::PassThrough { enabled, .. } => u8::from(*enabled),
            Self::Video(video) => {
                video.aim(live);
                let passing = video.current.filter(|_| video.wanted.is_some());
                [passing, video.target].into_iter().flatten().fold(0, |set, layer| set | 1 << layer)
            }
        }
    }

    /// The stream whose key frame is missing.
    pub fn awaits(&self) -> Option<u8> {
        match self {
            Self::PassThrough { .. } => None,
            Self::Video(video) => video.target.filter(|t| Some(*t) != video.current).or_else(|| {
                let rises = video.is_layered && video.wanted.is_some_and(|w| w.layer_max > video.spatial);
                video.current.filter(|_| rises)
            }),
        }
    }

    /// Decides on one packet. `live` is the set of streams that are being received, bit 0 the lowest.
    pub fn decide(&mut self, live: u8, layer: u8, frame: FrameInfo) -> Verdict {
        match self {
            Self::PassThrough { enabled: false, .. } => Verdict::Drop,
            Self::PassThrough { has_started, .. } => {
                if std::mem::replace(has_started, true) {
                    Verdict::Forward { spatial_max: 0 }
                } else {
                    Verdict::Start { spatial_max: 0, temporal_max: TEMPORAL_ALL }
                }
            }
            Self::Video(video) => video.decide(live, layer, frame),
        }
    }
}

impl Video {
    /// Sets the target: the best live stream within the wish, else the least above it.
    fn aim(&mut self, live: u8) -> Option<Wanted> {
        let wanted = self.wanted?;
        let fitting = (0..LAYERS_MAX as u8).filter(|l| live & 1 << l != 0);
        let best = fitting.clone().filter(|l| *l <= wanted.layer_max).max().or_else(|| fitting.min());
        self.target = best.or(self.current);
        Some(wanted)
    }

    fn decide(&mut self, live: u8, layer: u8, frame: FrameInfo) -> Verdict {
        let Some(wanted) = self.aim(live) else { return Verdict::Drop };
        if Some(layer) != self.current {
            if Some(layer) != self.target || !frame.starts_key_frame {
                return if frame.is_late && self.current.is_some() { Verdict::Late } else { Verdict::Drop };
            }
            self.current = Some(layer);
            self.key_picture(wanted, frame);
            return Verdict::Start { spatial_max: self.spatial, temporal_max: self.temporal };
        }
        if frame.is_late {
            // What is under way now is a newer frame: nothing changes in its middle.
        } else if frame.starts_key_frame {
            self.key_picture(wanted, frame);
        } else if frame.starts_frame && frame.spatial_id.unwrap_or(0) == 0 {
            // A new picture: what is too much goes.
            self.spatial = self.spatial.min(wanted.layer_max);
            self.temporal = self.temporal.min(wanted.temporal_max);
        }
        if frame.is_switching_up && !frame.is_late && frame.temporal_id > self.temporal && frame.temporal_id <= wanted.temporal_max {
            self.temporal = frame.temporal_id;
        }
        match frame.spatial_id {
            _ if frame.temporal_id > self.temporal => Verdict::Skip,
            Some(spatial) if spatial > self.spatial => Verdict::Skip,
            _ => Verdict::Forward { spatial_max: self.spatial },
        }
    }

    /// Everything can change here. A stream that is not told apart into layers is forwarded whole.
    fn key_picture(&mut self, wanted: Wanted, frame: FrameInfo) {
        self.is_layered = frame.spatial_id.is_some();
        self.spatial = wanted.layer_max;
        self.temporal = wanted.temporal_max;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTER: FrameInfo = FrameInfo {
        starts_key_frame: false,
        starts_frame: true,
        ends_frame: false,
        spatial_id: None,
        temporal_id: 0,
        is_switching_up: false,
        is_late: false,
    };
    const KEY: FrameInfo = FrameInfo { starts_key_frame: true, ..INTER };

    fn layer(layer_max: u8) -> Option<Wanted> {
        Some(Wanted { layer_max, ..Wanted::ALL })
    }

    #[test]
    fn layers_by_rows() {
        use Verdict::{Drop, Forward as F, Start as S};
        const FORWARD: Verdict = F { spatial_max: 2 };
        const START: Verdict = S { spatial_max: 2, temporal_max: TEMPORAL_ALL };
        // (live set, layer, frame, verdict, awaited afterwards)
        let rows: &[(&str, u8, u8, FrameInfo, Verdict, Option<u8>)] = &[
            ("no picture without a key frame", 0b001, 0, INTER, Drop, Some(0)),
            ("the only layer starts", 0b001, 0, KEY, START, None),
            ("and goes on", 0b001, 0, INTER, FORWARD, None),
            ("a better one appears", 0b011, 1, INTER, Drop, Some(1)),
            ("meanwhile the old one goes on", 0b011, 0, INTER, FORWARD, Some(1)),
            ("its key frame switches", 0b011, 1, KEY, START, None),
            ("the old one is over", 0b011, 0, KEY, Drop, None),
            ("the best one vanishes", 0b001, 0, INTER, Drop, Some(0)),
            ("and the lower one takes over", 0b001, 0, KEY, START, None),
        ];
        let mut selector = Selector::new(true);
        for (name, live, layer, frame, verdict, awaited) in rows {
            assert_eq!(selector.decide(*live, *layer, *frame), *verdict, "{name}");
            assert_eq!(selector.awaits(), *awaited, "{name}");
        }
    }

    #[test]
    fn a_wish_bounds_the_layer_and_a_pause_forgets_it() {
        let mut selector = Selector::new(true);
        assert_eq!(selector.decide(0b111, 2, KEY), Verdict::Start { spatial_max: 2, temporal_max: TEMPORAL_ALL });
        selector.set_wanted(layer(0));
        assert_eq!(selector.decide(0b111, 2, INTER), Verdict::Forward { spatial_max: 0 }, "until the lower one is there");
        assert_eq!(selector.decide(0b111, 0, KEY), Verdict::Start { spatial_max: 0, temporal_max: TEMPORAL_ALL });
        selector.set_wanted(None);
        assert_eq!(selector.decide(0b111, 0, KEY), Verdict::Drop);
        selector.set_wanted(layer(2));
        assert_eq!(selector.decide(0b001, 0, INTER), Verdict::Drop);
        assert_eq!(selector.decide(0b001, 0, KEY), Verdict::Start { spatial_max: 2, temporal_max: TEMPORAL_ALL });
        // Only layers above the wish: better one of them than none.
        selector.set_wanted(layer(0));
        assert_eq!(selector.decide(0b100, 2, KEY), Verdict::Start { spatial_max: 0, temporal_max: TEMPORAL_ALL });
    }

    #[test]
    fn temporal_layers_go_with_a_frame_and_come_back_where_nothing_is_missed() {
        use Verdict::Skip;
        const FORWARD: Verdict = Verdict::Forward { spatial_max: 2 };
        let of = |temporal_id| FrameInfo { temporal_id, ..INTER };
        let up = |temporal_id| FrameInfo { is_switching_up: true, ..of(temporal_id) };
        let middle = |temporal_id| FrameInfo { starts_frame: false, ..of(temporal_id) };
        let mut selector = Selector::new(true);
        selector.decide(1, 0, KEY);
        assert_eq!(selector.decide(1, 0, of(2)), FORWARD);
        selector.set_wanted(Some(Wanted { temporal_max: 0, ..Wanted::ALL }));
        assert_eq!(selector.decide(1, 0, FrameInfo { is_late: true, ..of(0) }), FORWARD, "a late start changes nothing");
        for (frame, want) in [(middle(2), FORWARD), (of(0), FORWARD), (of(2), Skip), (of(1), Skip), (up(1), Skip), (middle(1), Skip)] {
            assert_eq!(selector.decide(1, 0, frame), want, "{frame:?}");
        }
        selector.set_wanted(Some(Wanted::ALL));
        for (frame, want) in [(of(1), Skip), (up(1), FORWARD), (of(1), FORWARD), (of(2), Skip), (up(2), FORWARD)] {
            assert_eq!(selector.decide(1, 0, frame), want, "{frame:?}");
        }
    }

    #[test]
    fn spatial_layers_go_with_a_picture_and_come_back_with_a_key_frame() {
        use Verdict::{Forward, Skip, Start};
        let of = |spatial| FrameInfo { spatial_id: Some(spatial), ends_frame: true, ..INTER };
        let key = FrameInfo { starts_key_frame: true, ..of(0) };
        let mut selector = Selector::new(true);
        for (frame, want) in [
            (key, Start { spatial_max: 2, temporal_max: TEMPORAL_ALL }),
            (of(1), Forward { spatial_max: 2 }),
            (of(2), Forward { spatial_max: 2 }),
        ] {
            assert_eq!(selector.decide(1, 0, frame), want);
        }
        selector.set_wanted(layer(1));
        for (frame, want) in
            [(of(2), Forward { spatial_max: 2 }), (of(0), Forward { spatial_max: 1 }), (of(1), Forward { spatial_max: 1 }), (of(2), Skip)]
        {
            assert_eq!(selector.decide(1, 0, frame), want, "{frame:?}");
        }
        assert_eq!(selector.awaits(), None);
        selector.set_wanted(layer(2));
        assert_eq!(selector.decide(1, 0, of(2)), Skip);
        assert_eq!(selector.awaits(), Some(0), "a key frame of the same stream");
        for (frame, want) in [(key, Forward { spatial_max: 2 }), (of(1), Forward { spatial_max: 2 }), (of(2), Forward { spatial_max: 2 })] {
            assert_eq!(selector.decide(1, 0, frame), want, "{frame:?}");
        }
        assert_eq!(selector.awaits(), None);
    }

    #[test]
    fn audio_always_passes_unless_paused() {
        let mut selector = Selector::new(false);
        assert_eq!(selector.decide(0, 0, INTER), Verdict::Start { spatial_max: 0, temporal_max: TEMPORAL_ALL });
        assert_eq!(selector.decide(0, 0, INTER), Verdict::Forward { spatial_max: 0 });
        selector.set_wanted(None);
        assert_eq!(selector.decide(0, 0, INTER), Verdict::Drop);
        selector.set_wanted(layer(0));
        assert_eq!(selector.decide(0, 0, INTER), Verdict::Start { spatial_max: 0, temporal_max: TEMPORAL_ALL });
    }
}
