//! Parts of a packet's way, one by one: codecs, SRTP, numbers of a stream, the packet store.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use postern::base::id::TrackId;
use postern::base::time::Instant;
use postern::crypto::HmacSha1;
use postern::engine::rtp_out::{Input, RtpOut};
use postern::engine::srtp::{Profile, Receiver, Sender};
use postern::session::Media;
use postern::shard::store::Store;
use postern::wire::sdp::Format;
use postern::wire::stun::{Class, Message, Method, TransactionId, Writer, attr};
use postern::wire::{demux, rtcp, rtp, twcc, vp8};
use std::hint::black_box;

/// An RTP packet with two extensions and a payload that begins like VP8's; where the payload begins.
fn packet(payload: usize, sequence: u16, room: usize) -> (Vec<u8>, usize) {
    let fields = rtp::Outgoing { marker: false, has_padding: false, payload_type: 96, sequence, timestamp: 90_000, ssrc: 7 };
    let mut bytes = vec![0; 64 + payload + room];
    let extensions = [(1, &b"0"[..]), (3, &[0x9E][..])];
    let header = rtp::write_header(&mut bytes, fields, &[], &extensions).expect("it fits");
    bytes.truncate(header + payload + room);
    bytes[header..header + 8].copy_from_slice(&[0x90, 0xC0, 0x81, 0x23, 0x23, 0x10, 0, 0]);
    (bytes, header)
}

fn codecs(c: &mut Criterion) {
    let mut group = c.benchmark_group("codecs");
    let (bytes, header) = packet(1_100, 1, 0);
    group.bench_function("demux", |b| b.iter(|| demux::datagram(black_box(&bytes))));
    group.bench_function("rtp header", |b| b.iter(|| rtp::Header::read(black_box(&bytes))));
    group.bench_function("vp8 descriptor", |b| b.iter(|| vp8::Descriptor::read(black_box(&bytes[header..]))));
    let key = HmacSha1::new(b"a password of some length");
    let mut check = Vec::new();
    let mut writer = Writer::new(&mut check, Method::Binding, Class::Request, TransactionId([1; 12]));
    writer.attribute(attr::USERNAME, b"abcdefgh:ijklmnop").u32(attr::PRIORITY, 1).integrity(|b| key.sign(&[b])).fingerprint();
    group.bench_function("check, authenticated", |b| {
        b.iter(|| {
            let message = Message::decode(black_box(&check)).expect("a check");
            message.integrity().is_some_and(|i| key.verify(&[&i.header, i.rest], i.tag))
        });
    });
    let mut compound = Vec::new();
    rtcp::write_receiver_report(&mut compound, 1, &[rtcp::ReportBlock::default(); 4]);
    rtcp::write_nack(&mut compound, 1, 7, &[1, 2, 3, 40]);
    group.bench_function("rtcp compound", |b| b.iter(|| rtcp::packets(black_box(&compound)).flatten().count()));
    let mut feedback = Vec::new();
    twcc::write_feedback(&mut feedback, 1, 7, 0, 0, &[Some(1_000); 100]);
    group.bench_function("transport feedback of 100", |b| {
        b.iter(|| twcc::Feedback::read(black_box(&feedback)).into_iter().flatten().count());
    });
    group.finish();
}

fn srtp(c: &mut Criterion) {
    for profile in [Profile::AeadAes128Gcm, Profile::AeadAes256Gcm, Profile::Aes128CmSha1_80] {
        let (key, salt) = (vec![3; profile.lengths().0], vec![4; profile.lengths().1]);
        let sender = Sender::new(profile, &key, &salt).expect("keys");
        let mut group = c.benchmark_group(format!("srtp {}", profile.name()));
        for payload in [100, 1_100] {
            let (plain, header) = packet(payload, 1, sender.rtp_overhead());
            group.throughput(Throughput::Bytes(payload as u64));
            let mut bytes = plain.clone();
            group.bench_function(format!("protect {payload}"), |b| b.iter(|| sender.protect_rtp(black_box(&mut bytes), header, 7, 1)));
            let mut sealed = plain.clone();
            sender.protect_rtp(&mut sealed, header, 7, 1);
            group.bench_function(format!("unprotect {payload}"), |b| {
                // The same packet comes once to each receiver.
                let fresh = || (Receiver::new(profile, &key, &salt).expect("keys"), sealed.clone());
                b.iter_batched_ref(fresh, |(receiver, bytes)| receiver.unprotect_rtp(bytes).is_ok(), BatchSize::SmallInput);
            });
        }
        group.finish();
    }
}

fn input(sequence: u64) -> Input {
    Input {
        now: Instant::from_millis(sequence),
        ssrc: 7,
        layer: 0,
        sequence,
        timestamp: (sequence / 4 * 3_000) as u32,
        clock_rate: 90_000,
        marker: sequence % 4 == 3,
        sent_ntp: None,
        ntp: None,
        picture: Some(sequence / 4),
        tl0_pic_idx: (sequence / 4) as u8,
        ends_spatial: None,
        frame_number: None,
    }
}

fn switching(c: &mut Criterion) {
    let mut group = c.benchmark_group("numbers of a stream");
    let (mut out, mut sequence) = (RtpOut::new(1, 2, 100, 200), 1_000);
    out.switch(&input(sequence), 0);
    group.bench_function("the next packet", |b| {
        b.iter(|| {
            sequence += 1;
            out.map(&input(sequence))
        });
    });
    let (mut out, mut sequence) = (RtpOut::new(1, 2, 100, 200), 1_000);
    out.switch(&input(sequence), 0);
    group.bench_function("every other picture left out", |b| {
        b.iter(|| {
            sequence += 1;
            if sequence / 4 % 2 == 0 { out.map(&input(sequence)) } else { out.skip(&input(sequence), true) }
        });
    });
    let (mut out, mut sequence) = (RtpOut::new(1, 2, 100, 200), 1_000);
    out.switch(&input(sequence), 0);
    group.bench_function("another layer every 100 packets", |b| {
        b.iter(|| {
            sequence += 1;
            let input = Input { ssrc: 7 + (sequence / 100 % 3) as u32, ..input(sequence) };
            if sequence % 100 == 0 {
                out.switch(&input, 0);
            }
            out.map(&input)
        });
    });
    group.finish();
}

fn store(c: &mut Criterion) {
    let mut group = c.benchmark_group("packet store");
    let (bytes, header) = packet(1_100, 1, 0);
    let media = |sequence| Media {
        track: TrackId(1),
        layer: 0,
        format: Format { codec: rtp::Codec::Vp8, variant: 0 },
        header: rtp::Header::read(&bytes).expect("a header"),
        payload: header..bytes.len(),
        newest: None,
        may_repeat: false,
        sequence,
        sent_ntp: None,
        ntp: None,
        arrived: Instant::default(),
        frame: rtp::FrameInfo::default(),
        picture: None,
        frame_number: None,
        vp9: None,
        extensions: rtp::ExtensionMap::default(),
        audio_level: None,
    };
    let (mut store, mut sequence) = (Store::new(64 << 20), 0u64);
    group.bench_function("put", |b| {
        b.iter(|| {
            sequence += 1;
            store.put(Instant::from_millis(sequence * 5), media(sequence), &bytes)
        });
    });
    group.bench_function("get", |b| b.iter(|| store.get(TrackId(1), 0, black_box(sequence - 10)).is_some()));
    group.finish();
}

criterion_group!(parts, codecs, srtp, switching, store);
criterion_main!(parts);
