//! RTCP (RFC 3550 §6, RFC 4585): a walk over compound packets, and the few packets that we write.

use super::{Malformed, be16, be32, be64};

/// One report block of a sender or receiver report (RFC 3550 §6.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReportBlock {
    pub ssrc: u32,
    /// Share of packets lost since the last report, in 1/256.
    pub fraction_lost: u8,
    /// Packets lost since the beginning; 24 bits, signed.
    pub cumulative_lost: i32,
    pub highest_sequence: u32,
    /// Interarrival jitter, RTP clock units.
    pub jitter: u32,
    /// Middle 32 bits of the NTP stamp of the last sender report; 0 when there was none.
    pub last_sr: u32,
    /// Time since then, 1/65536 s.
    pub delay_since_last_sr: u32,
}

impl ReportBlock {
    const LEN: usize = 24;

    fn read(bytes: &[u8]) -> Option<Self> {
        let lost = be32(bytes, 4)?;
        Some(Self {
            ssrc: be32(bytes, 0)?,
            fraction_lost: (lost >> 24) as u8,
            cumulative_lost: ((lost << 8) as i32) >> 8,
            highest_sequence: be32(bytes, 8)?,
            jitter: be32(bytes, 12)?,
            last_sr: be32(bytes, 16)?,
            delay_since_last_sr: be32(bytes, 20)?,
        })
    }

    fn write(&self, out: &mut Vec<u8>) {
        let lost = u32::from(self.fraction_lost) << 24 | (self.cumulative_lost as u32 & 0x00FF_FFFF);
        for word in [self.ssrc, lost, self.highest_sequence, self.jitter, self.last_sr, self.delay_since_last_sr] {
            out.extend_from_slice(&word.to_be_bytes());
        }
    }
}

/// The sender's part of a sender report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderInfo {
    pub ssrc: u32,
    pub ntp: u64,
    pub rtp: u32,
    pub packets: u32,
    pub octets: u32,
}

/// One packet of a compound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    SenderReport(SenderInfo, Blocks<'a>),
    ReceiverReport(Blocks<'a>),
    /// Sources that left (RFC 3550 §6.6).
    Bye(Sources<'a>),
    /// Picture loss indication for a source (RFC 4585 §6.3.1).
    Pli {
        ssrc: u32,
    },
    /// Full intra request for a source (RFC 5104 §4.3.1).
    Fir {
        ssrc: u32,
    },
    /// Generic negative acknowledgement (RFC 4585 §6.2.1).
    Nack {
        ssrc: u32,
        lost: Lost<'a>,
    },
    /// Blocks of an extended report (RFC 3611).
    Extended {
        from: u32,
        blocks: XrBlocks<'a>,
    },
    /// Bandwidth that a receiver believes in, bit/s (draft-alvestrand-rmcat-remb-03).
    Remb {
        bps: u64,
    },
    /// Feedback with transport-wide numbers, for [`super::twcc::Feedback::read`].
    TransportCc(&'a [u8]),
    /// Whatever else is well-formed: SDES, APP.
    Other {
        kind: u8,
    },
}

/// Report blocks, read one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks<'a>(&'a [u8]);

impl Iterator for Blocks<'_> {
    type Item = ReportBlock;
    fn next(&mut self) -> Option<ReportBlock> {
        let block = ReportBlock::read(self.0)?;
        self.0 = &self.0[ReportBlock::LEN..];
        Some(block)
    }
}

/// Sources of a BYE, read one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sources<'a>(&'a [u8]);

impl Iterator for Sources<'_> {
    type Item = u32;
    fn next(&mut self) -> Option<u32> {
        let ssrc = be32(self.0, 0)?;
        self.0 = &self.0[4..];
        Some(ssrc)
    }
}

/// Sequence numbers of a NACK, in order: each word is one number and a bit for each of the 16 behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost<'a>(&'a [u8]);

impl<'a> Lost<'a> {
    pub fn sequences(self) -> impl Iterator<Item = u16> + 'a {
        self.0.chunks_exact(4).flat_map(|word| {
            let first = u16::from_be_bytes([word[0], word[1]]);
            let mask = u16::from_be_bytes([word[2], word[3]]);
            let behind = (0..16u16).filter(move |bit| mask & 1 << bit != 0).map(move |bit| first.wrapping_add(bit + 1));
            std::iter::once(first).chain(behind)
        })
    }
}

/// One block of an extended report that says something about round trips.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XrBlock {
    /// Receiver reference time, NTP (RFC 3611 §4.4): whoever sends media answers it.
    ReferenceTime(u64),
    /// Answer to ours (RFC 3611 §4.5): for source `ssrc`, middle bits of our stamp, delay since then in 1/65536 s.
    Delay { ssrc: u32, last_rr: u32, delay: u32 },
}

/// Blocks of an extended report, read one by one; those of other kinds are passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XrBlocks<'a> {
    blocks: &'a [u8],
    delays: &'a [u8],
}

impl Iterator for XrBlocks<'_> {
    type Item = XrBlock;
    fn next(&mut self) -> Option<XrBlock> {
        loop {
            if let (Some(ssrc), Some(last_rr), Some(delay)) = (be32(self.delays, 0), be32(self.delays, 4), be32(self.delays, 8)) {
                self.delays = &self.delays[12..];
                return Some(XrBlock::Delay { ssrc, last_rr, delay });
            }
            let (&kind, words) = (self.blocks.first()?, usize::from(be16(self.blocks, 2)?));
            let body = self.blocks.get(4..4 + 4 * words)?;
            self.blocks = &self.blocks[4 + 4 * words..];
            match (kind, be64(body, 0)) {
                (XR_REFERENCE_TIME, Some(ntp)) => return Some(XrBlock::ReferenceTime(ntp)),
                (XR_DELAY, _) => self.delays = body,
                _ => {}
            }
        }
    }
}

const XR_REFERENCE_TIME: u8 = 4;
const XR_DELAY: u8 = 5;

pub const SR: u8 = 200;
pub const RR: u8 = 201;
pub const SDES: u8 = 202;
pub const BYE: u8 = 203;
pub const RTPFB: u8 = 205;
pub const PSFB: u8 = 206;
pub const XR: u8 = 207;

/// Walks a compound packet. Any order, reduced size too (RFC 5506); stops at the first broken packet.
pub fn packets(mut compound: &[u8]) -> impl Iterator<Item = Result<Packet<'_>, Malformed>> {
    std::iter::from_fn(move || {
        if compound.is_empty() {
            return None;
        }
        let taken = take(compound);
        compound = match &taken {
            Some((_, rest)) => rest,
            None => &[],
        };
        Some(taken.map(|(packet, _)| packet).ok_or(Malformed))
    })
}

fn take(bytes: &[u8]) -> Option<(Packet<'_>, &[u8])> {
    let (&first, &kind) = (bytes.first()?, bytes.get(1)?);
    if first >> 6 != 2 {
        return None;
    }
    let len = 4 * (usize::from(be16(bytes, 2)?) + 1);
    let (body, rest) = (bytes.get(4..len)?, &bytes[len..]);
    let count = first & 0x1F;
    let packet = match (kind, count) {
        (SR, n) => {
            let info = SenderInfo {
                ssrc: be32(body, 0)?,
                ntp: be64(body, 4)?,
                rtp: be32(body, 12)?,
                packets: be32(body, 16)?,
                octets: be32(body, 20)?,
            };
            Packet::SenderReport(info, Blocks(body.get(24..24 + ReportBlock::LEN * usize::from(n))?))
        }
        (RR, n) => Packet::ReceiverReport(Blocks(body.get(4..4 + ReportBlock::LEN * usize::from(n))?)),
        (BYE, n) => Packet::Bye(Sources(body.get(..4 * usize::from(n))?)),
        (PSFB, 1) => Packet::Pli { ssrc: be32(body, 4)? },
        (PSFB, 4) => Packet::Fir { ssrc: be32(body, 8)? },
        (PSFB, 15) if body.get(8..12) == Some(b"REMB") => {
            let word = be32(body, 12)?;
            Packet::Remb { bps: u64::from(word & 0x3_FFFF) << (word >> 18 & 0x3F).min(45) }
        }
        (RTPFB, 1) => Packet::Nack { ssrc: be32(body, 4)?, lost: Lost(body.get(8..)?) },
        (RTPFB, 15) => Packet::TransportCc(&bytes[..len]),
        (XR, _) => Packet::Extended { from: be32(body, 0)?, blocks: XrBlocks { blocks: body.get(4..)?, delays: &[] } },
        _ => Packet::Other { kind },
    };
    Some((packet, rest))
}

fn header(out: &mut Vec<u8>, count: u8, kind: u8, body_len: usize) {
    debug_assert!(body_len.is_multiple_of(4));
    out.extend_from_slice(&[0x80 | count, kind]);
    out.extend_from_slice(&((body_len / 4) as u16).to_be_bytes());
}

/// Appends a receiver report of at most 31 blocks.
pub fn write_receiver_report(out: &mut Vec<u8>, from: u32, blocks: &[ReportBlock]) {
    let blocks = &blocks[..blocks.len().min(31)];
    header(out, blocks.len() as u8, RR, 4 + ReportBlock::LEN * blocks.len());
    out.extend_from_slice(&from.to_be_bytes());
    for block in blocks {
        block.write(out);
    }
}

/// Appends a goodbye of at most 31 sources (RFC 3550 §6.6).
pub fn write_bye(out: &mut Vec<u8>, sources: &[u32]) {
    let sources = &sources[..sources.len().min(31)];
    header(out, sources.len() as u8, BYE, 4 * sources.len());
    out.extend(sources.iter().flat_map(|ssrc| ssrc.to_be_bytes()));
}

/// Appends an extended report that asks senders to tell the round trip (RFC 3611 §4.4).
pub fn write_reference_time(out: &mut Vec<u8>, from: u32, ntp: u64) {
    header(out, 0, XR, 16);
    out.extend_from_slice(&from.to_be_bytes());
    out.extend_from_slice(&[XR_REFERENCE_TIME, 0, 0, 2]);
    out.extend_from_slice(&ntp.to_be_bytes());
}

/// Appends the answer to a reference time (RFC 3611 §4.5): `last_rr` is its middle bits, `delay` is in 1/65536 s.
pub fn write_delay(out: &mut Vec<u8>, from: u32, to: u32, last_rr: u32, delay: u32) {
    header(out, 0, XR, 20);
    out.extend_from_slice(&from.to_be_bytes());
    out.extend_from_slice(&[XR_DELAY, 0, 0, 3]);
    for word in [to, last_rr, delay] {
        out.extend_from_slice(&word.to_be_bytes());
    }
}

/// Appends a NACK for ascending sequence numbers of `ssrc`.
pub fn write_nack(out: &mut Vec<u8>, from: u32, ssrc: u32, lost: &[u16]) {
    let mut words: Vec<(u16, u16)> = Vec::with_capacity(lost.len());
    for sequence in lost {
        match words.last_mut().map(|(first, mask)| (sequence.wrapping_sub(*first), mask)) {
            Some((0, _)) => {}
            Some((behind @ 1..=16, mask)) => *mask |= 1 << (behind - 1),
            _ => words.push((*sequence, 0)),
        }
    }
    header(out, 1, RTPFB, 8 + 4 * words.len());
    out.extend_from_slice(&from.to_be_bytes());
    out.extend_from_slice(&ssrc.to_be_bytes());
    for (first, mask) in words {
        out.extend_from_slice(&first.to_be_bytes());
        out.extend_from_slice(&mask.to_be_bytes());
    }
}

/// Appends a sender report without blocks.
pub fn write_sender_report(out: &mut Vec<u8>, info: &SenderInfo) {
    header(out, 0, SR, 24);
    out.extend_from_slice(&info.ssrc.to_be_bytes());
    out.extend_from_slice(&info.ntp.to_be_bytes());
    for word in [info.rtp, info.packets, info.octets] {
        out.extend_from_slice(&word.to_be_bytes());
    }
}

/// Appends a source description with the CNAME of one source (RFC 3550 §6.5).
pub fn write_cname(out: &mut Vec<u8>, ssrc: u32, cname: &str) {
    let cname = &cname.as_bytes()[..cname.len().min(255)];
    // At least one zero byte ends the items of a chunk.
    let item = (2 + cname.len() + 1).next_multiple_of(4);
    header(out, 1, SDES, 4 + item);
    let end = out.len() + 4 + item;
    out.extend_from_slice(&ssrc.to_be_bytes());
    out.extend_from_slice(&[1, cname.len() as u8]);
    out.extend_from_slice(cname);
    out.resize(end, 0);
}

/// Appends a picture loss indication.
pub fn write_pli(out: &mut Vec<u8>, from: u32, ssrc: u32) {
    header(out, 1, PSFB, 8);
    out.extend_from_slice(&from.to_be_bytes());
    out.extend_from_slice(&ssrc.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let info = SenderInfo { ssrc: 1, ntp: 2 << 32, rtp: 3, packets: 4, octets: 5 };
        let block = ReportBlock { ssrc: 9, fraction_lost: 3, cumulative_lost: -2, jitter: 7, ..ReportBlock::default() };
        let mut out = Vec::new();
        write_sender_report(&mut out, &info);
        write_cname(&mut out, 1, "abc");
        write_receiver_report(&mut out, 1, &[block]);
        write_pli(&mut out, 1, 8);
        let mut got = packets(&out);
        assert!(matches!(got.next(), Some(Ok(Packet::SenderReport(i, _))) if i == info));
        assert_eq!(got.next(), Some(Ok(Packet::Other { kind: SDES })));
        let Some(Ok(Packet::ReceiverReport(mut blocks))) = got.next() else { panic!("a receiver report") };
        assert_eq!((blocks.next(), blocks.next()), (Some(block), None));
        assert_eq!(got.next(), Some(Ok(Packet::Pli { ssrc: 8 })));
        assert_eq!(got.next(), None);
    }

    #[test]
    fn lost_packets_are_named_and_read_back() {
        for lost in [&[7u16][..], &[1, 2, 17, 18, 40], &[65_534, 65_535, 0, 1, 16]] {
            let mut out = Vec::new();
            write_nack(&mut out, 1, 8, lost);
            let Some(Ok(Packet::Nack { ssrc: 8, lost: got })) = packets(&out).next() else { panic!("a NACK") };
            assert_eq!(got.sequences().collect::<Vec<_>>(), lost);
        }
    }

    #[test]
    fn round_trips_are_asked_for_and_told() {
        let mut out = Vec::new();
        write_reference_time(&mut out, 1, 0x0123_4567_89AB_CDEF);
        write_delay(&mut out, 1, 2, 3, 4);
        let mut got = Vec::new();
        for packet in packets(&out) {
            let Ok(Packet::Extended { from: 1, blocks }) = packet else { panic!("extended reports") };
            got.extend(blocks);
        }
        assert_eq!(got, [XrBlock::ReferenceTime(0x0123_4567_89AB_CDEF), XrBlock::Delay { ssrc: 2, last_rr: 3, delay: 4 }]);
        // A block that promises more than there is.
        let cut = [0x80, XR, 0, 2, 0, 0, 0, 1, 5, 0, 0, 9];
        let Some(Ok(Packet::Extended { mut blocks, .. })) = packets(&cut).next() else { panic!("an extended report") };
        assert_eq!(blocks.next(), None);
    }

    #[test]
    fn a_bandwidth_is_mantissa_and_exponent() {
        let remb = [0x8F, PSFB, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0, b'R', b'E', b'M', b'B', 1, 0x03 << 2 | 1, 0, 5, 0, 0, 0, 9];
        assert_eq!(packets(&remb).next(), Some(Ok(Packet::Remb { bps: (0x1_0005) << 3 })));
    }

    #[test]
    fn a_broken_packet_ends_the_walk() {
        let mut out = Vec::new();
        write_pli(&mut out, 1, 8);
        out.extend_from_slice(&[0x80, RR, 0, 9, 1]);
        let got: Vec<_> = packets(&out).collect();
        assert_eq!(got, [Ok(Packet::Pli { ssrc: 8 }), Err(Malformed)]);
        // More blocks promised than there are.
        assert_eq!(packets(&[0x82, RR, 0, 1, 0, 0, 0, 1]).next(), Some(Err(Malformed)));
    }

    #[test]
    fn a_cname_always_ends_with_zero() {
        for n in 0..9 {
            let mut out = Vec::new();
            write_cname(&mut out, 1, &"x".repeat(n));
            assert_eq!((out.len() % 4, out.last()), (0, Some(&0)), "{n}");
            assert_eq!(packets(&out).collect::<Vec<_>>(), [Ok(Packet::Other { kind: SDES })]);
        }
    }
}
