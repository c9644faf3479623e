//! What a simulated publisher sends: Opus every 20 ms, and VP8 pictures thirty times a second in up to three layers. Headers and
//! descriptors are real (RFC 7587, RFC 7741), pictures are filler behind a real frame header.
//!
//! The last bytes of each payload tell when it left, for whoever receives it: `| "PSTN" | ns since the start (8) |`.

use super::Sending;
use super::offer::{LEVEL, MID, OPUS, RID, RIDS, VP8};
use crate::base::time::{Duration, Instant};
use crate::engine::srtp::Sender;
use crate::wire::rtcp::{self, SenderInfo};
use crate::wire::rtp::{self, Outgoing};

const AUDIO_EVERY: Duration = Duration::from_millis(20);
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Whoever is later than this, because it was paused, goes on from now.
const LATE_MAX: Duration = Duration::from_millis(200);
const AUDIO_LEN: usize = 100;
/// Payload of a picture's packet at most, bytes.
const PACKET_MAX: usize = 1_100;
/// A key frame is so many times as long as another.
const KEY_FACTOR: usize = 4;
const STAMP: &[u8; 4] = b"PSTN";
pub const STAMP_LEN: usize = 12;

/// When a payload left, if it tells.
pub fn stamped(payload: &[u8]) -> Option<Instant> {
    let stamp = payload.get(payload.len().checked_sub(STAMP_LEN)?..)?;
    let ns = stamp.strip_prefix(STAMP)?.try_into().ok()?;
    Some(Instant::from_nanos(u64::from_be_bytes(ns)))
}

struct Layer {
    ssrc: u32,
    rid: &'static str,
    /// Bytes of a picture.
    frame_len: usize,
    index: u64,
    picture_id: u16,
    wants_key: bool,
    /// Payload bytes sent.
    octets: u64,
}

/// Where a source stands.
struct Voice {
    ssrc: u32,
    index: u64,
}

/// One publisher's microphone and camera.
pub struct Camera {
    audio: Option<Voice>,
    video_mid: String,
    layers: Vec<Layer>,
    frame_every: Duration,
    audio_due: Instant,
    frame_due: Instant,
    report_due: Instant,
    began: Instant,
    pub sent: u64,
}

/// Sources of a participant are eight in a row, that of its voice before those of its layers.
fn ssrc(seed: u32, nth: u32) -> u32 {
    seed.wrapping_mul(8).wrapping_add(nth + 1)
}

pub fn voice_ssrc(seed: u32) -> u32 {
    ssrc(seed, 0)
}

impl Camera {
    /// `seed` keeps sources of participants apart.
    pub fn new(now: Instant, sending: Sending, seed: u32) -> Self {
        // Each layer below takes a third of the one above.
        let layers = (0..sending.layers).map(|at| {
            let bps = sending.bitrate_bps / 3u32.pow(u32::from(sending.layers - 1 - at));
            let frame_len = (bps / 8 / sending.frames_per_second.max(1)).max(64) as usize;
            let (ssrc, rid) = (ssrc(seed, u32::from(at) + 1), RIDS[usize::from(at)]);
            Layer { ssrc, rid, frame_len, index: 1, picture_id: 0, wants_key: true, octets: 0 }
        });
        Self {
            audio: sending.audio.then_some(Voice { ssrc: voice_ssrc(seed), index: 1 }),
            video_mid: u8::from(sending.audio).to_string(),
            layers: layers.collect(),
            frame_every: Duration::from_secs(1) / sending.frames_per_second.max(1),
            audio_due: now,
            frame_due: now,
            report_due: now + REPORT_EVERY,
            began: now,
            sent: 0,
        }
    }

    pub fn deadline(&self) -> Instant {
        match (self.audio.is_some(), self.layers.is_empty()) {
            (true, true) => self.audio_due,
            (false, false) => self.frame_due,
            _ => self.audio_due.min(self.frame_due),
        }
    }

    /// The server asks for a picture to start from.
    pub fn feedback(&mut self, compound: &[u8]) {
        for packet in rtcp::packets(compound).flatten() {
            if let rtcp::Packet::Pli { ssrc } | rtcp::Packet::Fir { ssrc } = packet {
                self.layers.iter_mut().filter(|l| l.ssrc == ssrc).for_each(|l| l.wants_key = true);
            }
        }
    }

    /// Writes what is due, protected, to `out`.
    pub fn wake(&mut self, now: Instant, sender: &Sender, out: &mut Vec<Vec<u8>>) {
        let before = out.len();
        if now.since(self.deadline()) > LATE_MAX {
            (self.audio_due, self.frame_due) = (now, now);
        }
        while self.audio.is_some() && self.audio_due <= now {
            self.audio_due = self.audio_due + AUDIO_EVERY;
            self.say(now, sender, out);
        }
        while !self.layers.is_empty() && self.frame_due <= now {
            self.frame_due = self.frame_due + self.frame_every;
            let timestamp = self.picture_time(now);
            for layer in &mut self.layers {
                layer.show(now, timestamp, &self.video_mid, sender, out);
            }
        }
        self.sent += (out.len() - before) as u64;
    }

    /// Time of a picture, 90 kHz.
    fn picture_time(&self, now: Instant) -> u32 {
        (now.since(self.began).as_micros() * 9 / 100) as u32
    }

    /// Sender reports, once a second (RFC 3550 §6.4.1); nothing in between.
    pub fn report(&mut self, now: Instant) -> Option<Vec<u8>> {
        if now < self.report_due {
            return None;
        }
        self.report_due = now + REPORT_EVERY;
        let mut compound = Vec::with_capacity(128);
        if let Some(Voice { ssrc, index }) = self.audio {
            let rtp = (index * 960) as u32;
            let octets = (index * AUDIO_LEN as u64) as u32;
            rtcp::write_sender_report(&mut compound, &SenderInfo { ssrc, ntp: now.as_ntp(), rtp, packets: index as u32, octets });
        }
        for layer in &self.layers {
            let (packets, octets) = (layer.index as u32, layer.octets as u32);
            let info = SenderInfo { ssrc: layer.ssrc, ntp: now.as_ntp(), rtp: self.picture_time(now), packets, octets };
            rtcp::write_sender_report(&mut compound, &info);
        }
        Some(compound)
    }

    fn say(&mut self, now: Instant, sender: &Sender, out: &mut Vec<Vec<u8>>) {
        let Some(Voice { ssrc, index }) = &mut self.audio else { return };
        let fields = Outgoing {
            marker: false,
            has_padding: false,
            payload_type: OPUS,
            sequence: *index as u16,
            timestamp: (*index * 960) as u32,
            ssrc: *ssrc,
        };
        // A voice: level -30 dBov (RFC 6464).
        let extensions = [(MID, &b"0"[..]), (LEVEL, &[0x80 | 30][..])];
        let mut payload = vec![0x78; AUDIO_LEN];
        stamp(now, &mut payload);
        out.extend(packet(sender, fields, &extensions, &payload, *index));
        *index += 1;
    }
}

impl Layer {
    /// One picture, cut into packets.
    fn show(&mut self, now: Instant, timestamp: u32, mid: &str, sender: &Sender, out: &mut Vec<Vec<u8>>) {
        let is_key = std::mem::take(&mut self.wants_key);
        let mut left = if is_key { self.frame_len * KEY_FACTOR } else { self.frame_len };
        let mut is_first = true;
        while left > 0 {
            let len = left.clamp(6 + 10 + STAMP_LEN, PACKET_MAX);
            let [high, low] = self.picture_id.to_be_bytes();
            // X, and S for the first packet; I, L and T: a picture id of 15 bits, TL0PICIDX and the lowest of layers in time
            // (RFC 7741 §4.2: L without T is nothing).
            let mut payload = vec![0x80 | if is_first { 0x10 } else { 0 }, 0xE0, high | 0x80, low, low, 0];
            if is_first {
                // Frame tag: P is 0 for a key frame, then its start code and 640x360 (RFC 6386 §9.1).
                payload.extend_from_slice(if is_key { &[0x10, 0, 0, 0x9D, 0x01, 0x2A, 0x80, 0x02, 0x68, 0x01] } else { &[0x11, 0, 0] });
            }
            payload.resize(len.max(payload.len() + STAMP_LEN), 0x55);
            stamp(now, &mut payload);
            self.octets += payload.len() as u64;
            left = left.saturating_sub(len);
            let fields = Outgoing {
                marker: left == 0,
                has_padding: false,
                payload_type: VP8,
                sequence: self.index as u16,
                timestamp,
                ssrc: self.ssrc,
            };
            let extensions = [(MID, mid.as_bytes()), (RID, self.rid.as_bytes())];
            out.extend(packet(sender, fields, &extensions, &payload, self.index));
            self.index += 1;
            is_first = false;
        }
        self.picture_id = (self.picture_id + 1) & 0x7FFF;
    }
}

/// Writes the moment of sending to the end of a payload.
pub fn stamp(now: Instant, payload: &mut [u8]) {
    let at = payload.len() - STAMP_LEN;
    payload[at..at + 4].copy_from_slice(STAMP);
    payload[at + 4..].copy_from_slice(&now.as_nanos().to_be_bytes());
}

fn packet(sender: &Sender, fields: Outgoing, extensions: &[(u8, &[u8])], payload: &[u8], index: u64) -> Option<Vec<u8>> {
    let mut packet = vec![0; 64 + payload.len() + sender.rtp_overhead()];
    let header_len = rtp::write_header(&mut packet, fields, &[], extensions)?;
    packet.truncate(header_len + payload.len() + sender.rtp_overhead());
    packet[header_len..header_len + payload.len()].copy_from_slice(payload);
    sender.protect_rtp(&mut packet, header_len, fields.ssrc, index);
    Some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::srtp::{Profile, Receiver};
    use crate::wire::vp8::Descriptor;

    #[test]
    fn what_is_sent_can_be_received() {
        let at = Instant::from_millis;
        let (key, salt) = ([3; 16], [4; 12]);
        let sender = Sender::new(Profile::AeadAes128Gcm, &key, &salt).expect("keys");
        let mut receiver = Receiver::new(Profile::AeadAes128Gcm, &key, &salt).expect("keys");
        let sending = Sending { audio: true, layers: 3, bitrate_bps: 1_500_000, frames_per_second: 30 };
        let (mut camera, mut out) = (Camera::new(at(0), sending, 7), Vec::new());
        for ms in 0..1_000 {
            camera.wake(at(ms), &sender, &mut out);
        }
        let (mut sounds, mut keys, mut frames) = (0, 0, 0);
        for packet in &mut out {
            let (header, len, _) = receiver.unprotect_rtp(packet).expect("authentic");
            let payload = header.payload(&packet[..len]).expect("a payload");
            assert!(stamped(&packet[payload.clone()]).is_some_and(|sent| sent <= at(1_000)));
            if header.payload_type == OPUS {
                sounds += 1;
                continue;
            }
            let descriptor = Descriptor::read(&packet[payload.clone()]).expect("a descriptor");
            if descriptor.starts_frame {
                frames += 1;
                keys += u32::from(packet[payload.start + descriptor.len] & 1 == 0);
            }
        }
        assert_eq!((sounds, frames, keys), (50, 3 * 30, 3));
        let bits: usize = out.iter().map(|p| p.len() * 8).sum();
        assert!((2_000_000..3_000_000).contains(&bits), "{bits}: 1.5, 0.5 and 0.17 Mbit/s, a key frame each, headers");
    }
}
