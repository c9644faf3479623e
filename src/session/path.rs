//! How bytes reach one participant: what carries them, what they are dressed in, and the queue before a connection.
//!
//! ```text
//! Udp                        | payload |
//! Tcp      | length(16) | payload |                               RFC 4571
//! Relayed  | channel(16) | length(16) | payload | pad on streams  ChannelData, RFC 8656 §12.4
//!          | STUN header | XOR-PEER-ADDRESS | DATA | payload | pad  Data indication, until a channel is bound
//! ```

use crate::base::id::{Carrier, PeerAddr};
use crate::base::time::{Duration, Instant};
use crate::wire::stun::{Class, HEADER_LEN, Method, TransactionId, Writer, attr};
use crate::wire::turn::{CHANNEL_HEADER_LEN, channel_header};
use std::collections::VecDeque;

/// What is put around a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dress {
    Bare,
    Rfc4571,
    Channel(u16),
    Indication(PeerAddr),
}

/// Where a payload goes and in which dress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    pub carrier: Carrier,
    pub dress: Dress,
}

/// Longest header of all dresses: STUN header, XOR-PEER-ADDRESS for IPv6, head of DATA.
pub const HEADER_MAX: usize = 20 + 24 + 4;

impl Route {
    /// Writes the header to the front of `out`, which has room for [`HEADER_MAX`]; its length. Lengths are filled in by
    /// [`Route::finish`].
    pub fn open(&self, out: &mut [u8]) -> usize {
        match self.dress {
            Dress::Bare => 0,
            Dress::Rfc4571 => 2,
            Dress::Channel(_) => CHANNEL_HEADER_LEN,
            Dress::Indication(peer) => {
                let mut header = Vec::with_capacity(HEADER_MAX);
                // An indication has no answer, so its transaction id only has to be well-formed.
                let id = TransactionId([0x50; 12]);
                Writer::new(&mut header, Method::Data, Class::Indication, id)
                    .xor_address(attr::XOR_PEER_ADDRESS, peer.0)
                    .attribute(attr::DATA, &[]);
                out[..header.len()].copy_from_slice(&header);
                header.len()
            }
        }
    }

    /// Fills in the lengths of a message whose payload of `len` bytes began at `payload_at`; pads it. The length of all.
    pub fn finish(&self, out: &mut [u8], payload_at: usize, len: usize) -> usize {
        let end = payload_at + len;
        let padded = payload_at + len.next_multiple_of(4);
        let total = match self.dress {
            Dress::Bare | Dress::Rfc4571 => end,
            Dress::Channel(_) => {
                if matches!(self.carrier, Carrier::Stream(_)) {
                    padded
                } else {
                    end
                }
            }
            Dress::Indication(_) => padded,
        };
        out[end..total].fill(0);
        match self.dress {
            Dress::Bare => {}
            Dress::Rfc4571 => out[..payload_at].copy_from_slice(&(len as u16).to_be_bytes()),
            Dress::Channel(number) => out[..payload_at].copy_from_slice(&channel_header(number, len)),
            Dress::Indication(_) => {
                out[payload_at - 2..payload_at].copy_from_slice(&(len as u16).to_be_bytes());
                out[2..4].copy_from_slice(&((total - HEADER_LEN) as u16).to_be_bytes());
            }
        }
        total
    }
}

/// Bytes that may wait for one connection: of pictures and data, and of what goes before them.
const QUEUE_MAX: usize = 512 * 1024;
const URGENT_MAX: usize = 64 * 1024;
/// How long a frame may wait before newer ones are refused: older media is of no use to anybody.
const AGE_MAX: Duration = Duration::from_millis(1000);

/// Ages of the oldest frame in a queue from which on pictures are left out: those that nothing depends on, then any. A lost
/// segment whose repair is lost too stands still for half a second, and then all of it arrives at once: whoever leaves out
/// a picture that others depend on pays with a key frame, and only a way that is really too narrow is worth that.
const BEHIND: Duration = Duration::from_millis(200);
const FAR_BEHIND: Duration = Duration::from_millis(800);

/// How far a path is behind what is written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lag {
    None,
    Behind,
    FarBehind,
}

/// Leaves whole pictures of one stream out while its path is behind; packet by packet would waste what is sent of them.
#[derive(Debug, Default)]
pub struct Thinning {
    /// Timestamp of the newest picture, and whether it passes.
    newest: Option<(u32, bool)>,
    /// A picture that others depend on was left out: nothing passes before a key frame.
    needs_key_frame: bool,
    /// Since when nothing passes, and whether that was told.
    stopped: Option<(Instant, bool)>,
}

/// How long nothing passes before a stream counts as paused.
const PAUSED_AFTER: Duration = Duration::from_millis(1000);

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thinned {
    Pass,
    LeaveOut,
    /// Left out, and the path would take a key frame now.
    LeaveOutAndAsk,
}

impl Thinning {
    /// Whether the stream is paused, when that has changed.
    pub fn news(&mut self, now: Instant) -> Option<bool> {
        if !self.needs_key_frame {
            return self.stopped.take().and_then(|(_, was_told)| was_told.then_some(false));
        }
        let (since, was_told) = self.stopped.get_or_insert((now, false));
        let is_due = !*was_told && now.since(*since) >= PAUSED_AFTER;
        *was_told |= is_due;
        is_due.then_some(true)
    }

    /// `picture` is its RTP timestamp, `is_base` whether others depend on it.
    pub fn decide(&mut self, lag: Lag, picture: u32, is_base: bool, starts_key_frame: bool) -> Thinned {
        let is_new = self.newest.is_none_or(|(newest, _)| picture.wrapping_sub(newest) as i32 > 0);
        if is_new || starts_key_frame {
            let fits = if is_base { lag < Lag::FarBehind } else { lag < Lag::Behind };
            self.needs_key_frame &= !(starts_key_frame && fits);
            let passes = fits && !self.needs_key_frame;
            self.needs_key_frame |= is_base && !passes;
            self.newest = Some((picture, passes));
        }
        match self.newest {
            Some((newest, passes)) if newest == picture && passes => Thinned::Pass,
            // A late packet of a picture before: whatever became of that, it does no harm.
            Some((newest, _)) if newest != picture && !self.needs_key_frame => Thinned::Pass,
            _ if self.needs_key_frame && lag == Lag::None => Thinned::LeaveOutAndAsk,
            _ => Thinned::LeaveOut,
        }
    }
}

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cargo {
    /// Of checks, of the relay, feedback.
    Answer,
    Sound,
    Picture,
    /// Handshakes and data channels.
    Data,
    /// What a peer sends through the relay: whatever it is, late it is of little use.
    Relayed,
}

impl Cargo {
    /// Small and of no use when late: it goes before the rest that waits.
    fn is_urgent(self) -> bool {
        matches!(self, Self::Answer | Self::Sound)
    }

    /// Newer ones make it useless.
    fn ages(self) -> bool {
        matches!(self, Self::Sound | Self::Picture | Self::Relayed)
    }
}

/// Frames in the order in which they leave.
#[derive(Default)]
struct Lane {
    bytes: VecDeque<u8>,
    frames: VecDeque<(usize, Instant)>,
}

impl Lane {
    /// How long its oldest frame has waited.
    fn age(&self, now: Instant) -> Duration {
        self.frames.front().map_or(Duration::ZERO, |(_, since)| now.since(*since))
    }

    /// Moves whole frames to `out`, up to `budget` bytes in all that were `taken` before.
    fn take(&mut self, budget: usize, taken: &mut usize, out: &mut Vec<u8>) {
        let mut bytes = 0;
        while let Some((len, _)) = self.frames.front().filter(|(len, _)| *taken == 0 || *taken + len <= budget) {
            bytes += len;
            *taken += len;
            self.frames.pop_front();
        }
        // Slice by slice: byte by byte it was a quarter of all that a connection cost.
        let (front, back) = self.bytes.as_slices();
        let in_front = bytes.min(front.len());
        out.extend_from_slice(&front[..in_front]);
        out.extend_from_slice(&back[..bytes - in_front]);
        self.bytes.drain(..bytes);
    }
}

/// What waits in plaintext for a connection. Nothing is encrypted before it is certain to be sent.
#[derive(Default)]
pub struct FrameQueue {
    urgent: Lane,
    rest: Lane,
}

impl FrameQueue {
    pub fn is_empty(&self) -> bool {
        self.urgent.frames.is_empty() && self.rest.frames.is_empty()
    }

    pub fn lag(&self, now: Instant) -> Lag {
        match self.urgent.age(now).max(self.rest.age(now)) {
            age if age > FAR_BEHIND => Lag::FarBehind,
            age if age > BEHIND => Lag::Behind,
            _ => Lag::None,
        }
    }

    /// Takes a frame, or refuses it when the connection is behind in bytes or, for what ages, in time.
    pub fn push(&mut self, now: Instant, frame: &[u8], cargo: Cargo) -> bool {
        let (lane, bytes_max) = if cargo.is_urgent() { (&mut self.urgent, URGENT_MAX) } else { (&mut self.rest, QUEUE_MAX) };
        if lane.bytes.len() + frame.len() > bytes_max || (cargo.ages() && lane.age(now) > AGE_MAX) {
            return false;
        }
        lane.bytes.extend(frame);
        lane.frames.push_back((frame.len(), now));
        true
    }

    /// Moves whole frames of at most `budget` bytes to `out`, at least one if any waits: urgent ones first, but a quarter is
    /// for the rest, or handshakes would never leave on a way that is too narrow for the sound alone.
    pub fn take(&mut self, budget: usize, out: &mut Vec<u8>) {
        let mut taken = 0;
        self.urgent.take(budget - budget / 4, &mut taken, out);
        self.rest.take(budget, &mut taken, out);
        self.urgent.take(budget, &mut taken, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::id::{ClientAddr, SocketId, StreamId};
    use crate::wire::stun::Message;
    use crate::wire::{framing::Framing, turn};

    fn dressed(carrier: Carrier, dress: Dress, payload: &[u8]) -> Vec<u8> {
        let route = Route { carrier, dress };
        // What is left from before must not shine through.
        let mut out = vec![0xEE; HEADER_MAX + payload.len() + 4];
        let at = route.open(&mut out);
        out[at..at + payload.len()].copy_from_slice(payload);
        let len = route.finish(&mut out, at, payload.len());
        out.truncate(len);
        out
    }

    const STREAM: Carrier = Carrier::Stream(StreamId(1));

    fn udp() -> Carrier {
        let remote = ClientAddr(([192, 0, 2, 1], 5).into());
        Carrier::Udp { socket: SocketId(0), local: [192, 0, 2, 9].into(), remote }
    }

    #[test]
    fn a_stream_that_stands_still_is_paused_until_a_key_frame_passes() {
        let (mut thinning, at) = (Thinning::default(), Instant::from_millis);
        assert_eq!(thinning.decide(Lag::FarBehind, 1, true, false), Thinned::LeaveOut);
        assert_eq!((thinning.news(at(0)), thinning.news(at(999)), thinning.news(at(1_000))), (None, None, Some(true)));
        assert_eq!(thinning.news(at(5_000)), None, "told once");
        assert_eq!(thinning.decide(Lag::None, 2, true, true), Thinned::Pass);
        assert_eq!((thinning.news(at(5_100)), thinning.news(at(5_200))), (Some(false), None));
        // What passes again soon is no pause.
        thinning.decide(Lag::FarBehind, 3, true, false);
        assert_eq!(thinning.news(at(6_000)), None);
        thinning.decide(Lag::None, 4, true, true);
        assert_eq!(thinning.news(at(6_500)), None);
    }

    #[test]
    fn every_dress_reads_back() {
        for len in [0, 1, 2, 3, 4, 5, 1200] {
            let payload = vec![7; len];
            assert_eq!(dressed(udp(), Dress::Bare, &payload), payload);
            let framed = dressed(STREAM, Dress::Rfc4571, &payload);
            let frame = Framing::Rfc4571.next(&framed).expect("well-formed").expect("whole");
            assert_eq!((&framed[frame.start..frame.end], frame.consumed), (&payload[..], framed.len()));
            for carrier in [udp(), STREAM] {
                let channel = dressed(carrier, Dress::Channel(0x4001), &payload);
                let (number, range) = turn::channel_data(&channel).expect("well-formed");
                assert_eq!((number, &channel[range]), (0x4001, &payload[..]));
                let padded = if carrier == STREAM { len.next_multiple_of(4) } else { len };
                assert_eq!(channel.len(), 4 + padded, "padding is for streams");
                for peer in ["192.0.2.3:443", "[2001:db8::3]:443"] {
                    let peer = PeerAddr(peer.parse().expect("a literal"));
                    let indication = dressed(carrier, Dress::Indication(peer), &payload);
                    let message = Message::decode(&indication).expect("well-formed");
                    assert_eq!(message.get(attr::DATA), Some(&payload[..]));
                    assert_eq!(message.get(attr::XOR_PEER_ADDRESS).and_then(|v| message.xor_address(v)), Some(peer.0));
                }
            }
        }
    }

    #[test]
    fn pictures_are_left_out_whole() {
        use Thinned::{LeaveOut, LeaveOutAndAsk, Pass};
        // (lag, picture, base, key, outcome)
        let rows: &[(&str, Lag, u32, bool, bool, Thinned)] = &[
            ("a key frame", Lag::None, 1, true, true, Pass),
            ("its second packet, whatever the lag", Lag::FarBehind, 1, true, false, Pass),
            ("an enhancement that fits", Lag::None, 2, false, false, Pass),
            ("one that does not", Lag::Behind, 3, false, false, LeaveOut),
            ("nor its second packet", Lag::None, 3, false, false, LeaveOut),
            ("the base still does", Lag::Behind, 4, true, false, Pass),
            ("a late packet of what passed", Lag::None, 2, false, false, Pass),
            ("a base picture that is too much", Lag::FarBehind, 5, true, false, LeaveOut),
            ("what depends on it", Lag::Behind, 6, false, false, LeaveOut),
            ("the way is free, but the picture is lost", Lag::None, 7, true, false, LeaveOutAndAsk),
            ("a key frame brings it back", Lag::None, 8, true, true, Pass),
            ("and the rest follows", Lag::None, 9, false, false, Pass),
        ];
        let mut thinning = Thinning::default();
        for (name, lag, picture, is_base, is_key, want) in rows {
            assert_eq!(thinning.decide(*lag, *picture, *is_base, *is_key), *want, "{name}");
        }
    }

    #[test]
    fn a_queue_is_bounded_in_time_and_bytes() {
        let mut queue = FrameQueue::default();
        assert!(queue.push(Instant::from_millis(0), &[1; 10], Cargo::Picture));
        assert!(queue.push(Instant::from_millis(1_000), &[2; 10], Cargo::Picture));
        assert!(!queue.push(Instant::from_millis(1_001), &[3; 10], Cargo::Picture), "late media");
        assert!(queue.push(Instant::from_millis(1_001), &[4; 10], Cargo::Data), "what does not age still passes");
        let mut out = Vec::new();
        queue.take(15, &mut out);
        assert_eq!(out, [1; 10], "whole frames only");
        queue.take(1, &mut out);
        assert_eq!(out.len(), 20, "at least one");
        assert!(!queue.push(Instant::from_millis(1_001), &vec![0; QUEUE_MAX], Cargo::Data), "full");
    }

    #[test]
    fn sound_and_answers_do_not_wait_behind_pictures() {
        let mut queue = FrameQueue::default();
        let at = Instant::from_millis;
        for i in 0..100 {
            assert!(queue.push(at(i), &[0; 1_000], Cargo::Picture));
        }
        assert!(queue.push(at(1_200), &[7; 100], Cargo::Sound), "pictures that wait do not make it late");
        assert!(queue.push(at(1_200), &[8; 50], Cargo::Answer));
        assert_eq!(queue.lag(at(1_200)), Lag::FarBehind);
        let mut out = Vec::new();
        queue.take(1_200, &mut out);
        assert_eq!((out.len(), out[0], out[100], out[150]), (1_150, 7, 8, 0));
        while !queue.is_empty() {
            queue.take(5_000, &mut out);
        }
        assert_eq!(out.len(), 100_150, "each frame once");
        while queue.push(at(700), &[0; 1_000], Cargo::Picture) {}
        assert!(queue.push(at(700), &[7; 100], Cargo::Sound), "pictures do not take its room");
        while queue.push(at(700), &[7; 100], Cargo::Sound) {}
        assert!(queue.urgent.bytes.len() <= URGENT_MAX);
        out.clear();
        queue.take(4_000, &mut out);
        assert_eq!((out.len(), out[2_999], out[3_000]), (4_000, 7, 0), "a quarter is for the rest");
    }
}
