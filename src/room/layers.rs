//! Which simulcast layer passes to one hearer. Switching up and down happens on the first packet of a key frame.

use crate::wire::rtp::FrameInfo;

/// Simulcast layers of one track: low, medium, high.
pub const LAYERS_MAX: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Forward,
    /// The hearer's stream continues from this packet's source.
    Start,
    Drop,
}

/// The choice of layer for one hearer of one track.
#[derive(Debug)]
pub enum Selector {
    /// Audio: everything passes.
    PassThrough {
        enabled: bool,
        has_started: bool,
    },
    Video {
        wanted: Option<u8>,
        current: Option<u8>,
        target: Option<u8>,
    },
}

impl Selector {
    pub fn new(is_video: bool) -> Self {
        if is_video {
            Self::Video { wanted: Some(LAYERS_MAX as u8 - 1), current: None, target: None }
        } else {
            Self::PassThrough { enabled: true, has_started: false }
        }
    }

    /// `None` pauses; else the highest layer that the hearer has use for.
    pub fn set_wanted(&mut self, layer_max: Option<u8>) {
        match self {
            Self::PassThrough { enabled, has_started } => {
                *enabled = layer_max.is_some();
                *has_started &= *enabled;
            }
            Self::Video { wanted, current, target } => {
                *wanted = layer_max;
                if layer_max.is_none() {
                    // What comes after a pause starts with a picture of its own.
                    *current = None;
                    *target = None;
                }
            }
        }
    }

    /// The layer that passes now.
    pub fn current(&self) -> Option<u8> {
        match self {
            Self::PassThrough { enabled, .. } => enabled.then_some(0),
            Self::Video { current, .. } => *current,
        }
    }

    /// The layer whose key frame is missing.
    pub fn awaits(&self) -> Option<u8> {
        match self {
            Self::PassThrough { .. } => None,
            Self::Video { current, target, .. } => target.filter(|t| Some(*t) != *current),
        }
    }

    /// Decides on one packet. `live` is the set of layers that are being received, bit 0 the lowest.
    pub fn decide(&mut self, live: u8, layer: u8, frame: FrameInfo) -> Verdict {
        match self {
            Self::PassThrough { enabled: false, .. } => Verdict::Drop,
            Self::PassThrough { has_started, .. } => {
                if std::mem::replace(has_started, true) {
                    Verdict::Forward
                } else {
                    Verdict::Start
                }
            }
            Self::Video { wanted: None, .. } => Verdict::Drop,
            Self::Video { wanted: Some(wanted), current, target } => {
                let fitting = (0..LAYERS_MAX as u8).filter(|l| live & 1 << l != 0);
                let best = fitting.clone().filter(|l| l <= wanted).max().or_else(|| fitting.min());
                *target = best.or(*current);
                if Some(layer) == *current {
                    return Verdict::Forward;
                }
                if Some(layer) == *target && frame.starts_key_frame {
                    *current = Some(layer);
                    return Verdict::Start;
                }
                Verdict::Drop
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: FrameInfo = FrameInfo { starts_key_frame: true, temporal_id: 0 };
    const INTER: FrameInfo = FrameInfo { starts_key_frame: false, temporal_id: 0 };

    #[test]
    fn layers_by_rows() {
        use Verdict::{Drop, Forward, Start};
        // (live set, layer, frame, verdict, awaited afterwards)
        let rows: &[(&str, u8, u8, FrameInfo, Verdict, Option<u8>)] = &[
            ("no picture without a key frame", 0b001, 0, INTER, Drop, Some(0)),
            ("the only layer starts", 0b001, 0, KEY, Start, None),
            ("and goes on", 0b001, 0, INTER, Forward, None),
            ("a better one appears", 0b011, 1, INTER, Drop, Some(1)),
            ("meanwhile the old one goes on", 0b011, 0, INTER, Forward, Some(1)),
            ("its key frame switches", 0b011, 1, KEY, Start, None),
            ("the old one is over", 0b011, 0, KEY, Drop, None),
            ("the best one vanishes", 0b001, 0, INTER, Drop, Some(0)),
            ("and the lower one takes over", 0b001, 0, KEY, Start, None),
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
        assert_eq!(selector.decide(0b111, 2, KEY), Verdict::Start);
        selector.set_wanted(Some(0));
        assert_eq!(selector.decide(0b111, 2, INTER), Verdict::Forward, "until the lower one is there");
        assert_eq!(selector.decide(0b111, 0, KEY), Verdict::Start);
        selector.set_wanted(None);
        assert_eq!(selector.decide(0b111, 0, KEY), Verdict::Drop);
        selector.set_wanted(Some(2));
        assert_eq!(selector.decide(0b001, 0, INTER), Verdict::Drop);
        assert_eq!(selector.decide(0b001, 0, KEY), Verdict::Start);
        // Only layers above the wish: better one of them than none.
        selector.set_wanted(Some(0));
        assert_eq!(selector.decide(0b100, 2, KEY), Verdict::Start);
    }

    #[test]
    fn audio_always_passes_unless_paused() {
        let mut selector = Selector::new(false);
        assert_eq!(selector.decide(0, 0, INTER), Verdict::Start);
        assert_eq!(selector.decide(0, 0, INTER), Verdict::Forward);
        selector.set_wanted(None);
        assert_eq!(selector.decide(0, 0, INTER), Verdict::Drop);
        selector.set_wanted(Some(0));
        assert_eq!(selector.decide(0, 0, INTER), Verdict::Start);
    }
}
