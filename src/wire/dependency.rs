//! Dependency descriptor (RTP payload format for AV1, annex A): which layer a frame is of, and whether a receiver may go up
//! here. Only what a forwarder decides from is read: templates' layers and decode target indications.
//!
//! ```text
//! | start(1) | end(1) | template id(6) | frame number(16) |                                          always
//! | structure(1) | active targets(1) | custom DTIs(1) | custom fdiffs(1) | custom chains(1) | ...    longer ones
//! structure: | id offset(6) | targets - 1 (5) | template layers, 2 bits each | DTIs, 2 bits each | ...
//! ```
//! The structure comes with a key frame and holds until the next one.

use super::be16;
use super::rtp::FrameInfo;

const TEMPLATES_MAX: usize = 64;
const TARGETS_MAX: usize = 32;
/// A decode target indication: from this frame on the target can be decoded.
const SWITCH: u8 = 2;

/// What a stream's last key frame said about its layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Structure {
    id_offset: u8,
    templates: Vec<Template>,
    /// Highest temporal layer of each decode target.
    target_temporal: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Template {
    spatial: u8,
    temporal: u8,
    /// Two bits a target.
    indications: u64,
}

/// Reads a descriptor; takes up the structure that it brings. `None` when it is malformed or its structure is not known.
pub fn read(bytes: &[u8], known: &mut Option<Structure>) -> Option<FrameInfo> {
    let mut bits = Bits { bytes, at: 0 };
    let (starts_frame, ends_frame) = (bits.take(1)? == 1, bits.take(1)? == 1);
    let template_id = bits.take(6)? as u8;
    bits.take(16)?;
    let (mut brings_structure, mut custom_indications) = (false, false);
    let mut has_active_targets = false;
    if bytes.len() > 3 {
        brings_structure = bits.take(1)? == 1;
        has_active_targets = bits.take(1)? == 1;
        custom_indications = bits.take(1)? == 1;
        bits.take(2)?;
    }
    if brings_structure {
        *known = Some(Structure::read(&mut bits)?);
    }
    let structure = known.as_ref()?;
    let template = structure.templates.get(usize::from(template_id.wrapping_sub(structure.id_offset) & 63))?;
    // Behind a structure lie parts of it that are not read here; its own frame is a key frame, and that says it all.
    let indications = if custom_indications && !brings_structure {
        if has_active_targets {
            bits.take(structure.target_temporal.len())?;
        }
        bits.indications(structure.target_temporal.len())?
    } else {
        template.indications
    };
    let targets = structure.target_temporal.iter().enumerate();
    let is_switching_up =
        targets.filter(|(_, temporal)| **temporal >= template.temporal).any(|(at, _)| (indications >> (2 * at) & 3) as u8 == SWITCH);
    Some(FrameInfo {
        starts_key_frame: starts_frame && brings_structure,
        starts_frame,
        ends_frame,
        spatial_id: Some(template.spatial),
        temporal_id: template.temporal,
        is_switching_up,
        is_late: false,
    })
}

/// Which frame of its stream it is: others count from it.
pub fn frame_number(bytes: &[u8]) -> Option<u16> {
    be16(bytes, 1)
}

pub fn set_frame_number(bytes: &mut [u8], number: u16) {
    if let Some(place) = bytes.get_mut(1..3) {
        place.copy_from_slice(&number.to_be_bytes());
    }
}

impl Structure {
    fn read(bits: &mut Bits<'_>) -> Option<Self> {
        let id_offset = bits.take(6)? as u8;
        let targets = bits.take(5)? as usize + 1;
        let (mut spatial, mut temporal) = (0, 0);
        let mut templates = Vec::new();
        loop {
            if templates.len() == TEMPLATES_MAX {
                return None;
            }
            templates.push(Template { spatial, temporal, indications: 0 });
            match bits.take(2)? {
                0 => {}
                1 => temporal += 1,
                2 => (spatial, temporal) = (spatial + 1, 0),
                _ => break,
            }
        }
        let mut target_temporal = vec![0; targets];
        for template in &mut templates {
            template.indications = bits.indications(targets)?;
            for (at, highest) in target_temporal.iter_mut().enumerate() {
                if template.indications >> (2 * at) & 3 != 0 {
                    *highest = template.temporal.max(*highest);
                }
            }
        }
        Some(Self { id_offset, templates, target_temporal })
    }
}

struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    /// The next `n` bits, at most 32.
    fn take(&mut self, n: usize) -> Option<u32> {
        let mut value = 0;
        for _ in 0..n {
            let byte = self.bytes.get(self.at / 8)?;
            value = value << 1 | u32::from(byte >> (7 - self.at % 8) & 1);
            self.at += 1;
        }
        Some(value)
    }

    fn indications(&mut self, targets: usize) -> Option<u64> {
        debug_assert!(targets <= TARGETS_MAX);
        (0..targets).try_fold(0, |all, at| Some(all | u64::from(self.take(2)?) << (2 * at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes bits from the left.
    fn pack(fields: &[(u32, usize)]) -> Vec<u8> {
        let bits: Vec<u32> = fields.iter().flat_map(|(value, n)| (0..*n).rev().map(move |i| value >> i & 1)).collect();
        bits.chunks(8).map(|byte| byte.iter().enumerate().fold(0, |b, (i, bit)| b | (*bit as u8) << (7 - i))).collect()
    }

    /// L2T2: templates S0T0, S0T1, S1T0, S1T1 from id 60; targets S0T0, S0T1, S1T0, S1T1.
    fn key_frame() -> Vec<u8> {
        let mandatory = [(1, 1), (0, 1), (60, 6), (7, 16)];
        let flags = [(1, 1), (0, 1), (0, 1), (0, 1), (0, 1)];
        let structure = [(60, 6), (3, 5)];
        let layers = [(1, 2), (2, 2), (1, 2), (3, 2)];
        let rows = [[2, 2, 2, 2], [0, 2, 0, 3], [0, 0, 2, 2], [0, 0, 0, 2]];
        let indications = rows.iter().flatten().map(|d| (*d, 2));
        pack(&mandatory.into_iter().chain(flags).chain(structure).chain(layers).chain(indications).chain([(0, 16)]).collect::<Vec<_>>())
    }

    fn frame(start: u32, end: u32, template: u32) -> Vec<u8> {
        pack(&[(start, 1), (end, 1), (template, 6), (8, 16)])
    }

    #[test]
    fn frames_are_told_apart_by_the_structure_of_their_key_frame() {
        let mut known = None;
        assert_eq!(read(&frame(1, 1, 60), &mut known), None, "no structure yet");
        let key = read(&key_frame(), &mut known).expect("well-formed");
        let layer = |spatial, temporal_id| FrameInfo { spatial_id: Some(spatial), temporal_id, starts_frame: true, ..FrameInfo::default() };
        assert_eq!(key, FrameInfo { starts_key_frame: true, is_switching_up: true, ..layer(0, 0) });
        let rows = [
            (frame(1, 0, 61), FrameInfo { is_switching_up: true, ..layer(0, 1) }),
            (frame(1, 1, 63), FrameInfo { is_switching_up: true, ends_frame: true, ..layer(1, 1) }),
            (frame(0, 1, 62), FrameInfo { is_switching_up: true, starts_frame: false, ends_frame: true, ..layer(1, 0) }),
        ];
        for (bytes, want) in rows {
            assert_eq!(read(&bytes, &mut known), Some(want));
        }
        // Its own indications: required by all, nobody may start here.
        let custom = pack(&[(1, 1), (0, 1), (61, 6), (9, 16), (0, 1), (0, 1), (1, 1), (0, 1), (0, 1), (0xFF, 8), (0, 8)]);
        assert_eq!(read(&custom, &mut known), Some(layer(0, 1)));
        assert_eq!(read(&frame(1, 1, 5), &mut known), None, "a template that does not exist");
    }

    #[test]
    fn broken_descriptors_are_no_frames() {
        let whole = key_frame();
        for n in 0..whole.len() - 2 {
            read(&whole[..n], &mut None);
        }
        let endless = [0xFF, 0, 1, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(read(&endless, &mut None), None, "templates without end");
        let mut dice = crate::base::rng::Rng::new(3);
        let mut known = None;
        for _ in 0..20_000 {
            let bytes: Vec<u8> = (0..dice.below(40)).map(|_| dice.next_u64() as u8).collect();
            read(&bytes, &mut known);
        }
    }
}
