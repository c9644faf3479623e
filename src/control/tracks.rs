//! What an offer does to a participant's tracks and subscriptions, the words of the room protocol for them, and what a
//! participant may say of itself. Pure.

use super::rooms::{Participant, Subscription, Track};
use crate::base::id::{RoomId, SessionId, TrackId};
use crate::room::layers::{TEMPORAL_ALL, Wanted};
use crate::session::negotiate::{Use, Voice};
use crate::shard::mail::Command;
use crate::wire::rtp::{Codec, Extension};
use crate::wire::sdp::{Description, Kind, Section};
use livekit_protocol as proto;
use std::collections::HashMap;

/// Binds sections in which the client sends to its tracks: by mid as before, by `msid` = cid, by kind. Returns the tracks
/// that are published now, and those that are no more.
pub(super) fn bind_published(p: &mut Participant, offer: &Description) -> (Vec<TrackId>, Vec<TrackId>) {
    let sends = |s: &&Section| !s.is_rejected && s.kind != Kind::Application && s.direction.sends();
    let sending: Vec<&Section> = offer.sections.iter().filter(sends).collect();
    let is_carried = |t: &Track| t.mid.as_ref().is_none_or(|mid| sending.iter().any(|s| s.mid == *mid));
    let gone: Vec<String> = p.tracks.iter().filter(|t| !t.is_backup && !is_carried(t)).map(|t| t.info.sid.clone()).collect();
    let mut unpublished: Vec<TrackId> = p.tracks.extract_if(.., |t| gone.contains(&t.info.sid)).map(|t| t.id).collect();
    for backup in p.tracks.iter_mut().filter(|t| !is_carried(t)) {
        backup.rest();
        unpublished.push(backup.id);
    }
    let mut published = Vec::new();
    for section in &sending {
        if p.tracks.iter().any(|t| t.mid.as_ref() == Some(&section.mid)) {
            continue;
        }
        let cid = section.msid.as_ref().map(|(_, track)| track.as_str());
        let pending = |t: &&Track| t.mid.is_none() && kind_of(&t.info) == section.kind && !t.is_resting();
        let by_cid = p.tracks.iter().filter(pending).find(|t| Some(t.cid.as_str()) == cid).map(|t| t.id);
        // Clients that know no cid; not what another section names, and never a backup.
        let is_named = |t: &Track| sending.iter().any(|s| s.msid.as_ref().is_some_and(|(_, track)| *track == t.cid));
        let by_kind = || p.tracks.iter().filter(pending).find(|t| !t.is_backup && !is_named(t)).map(|t| t.id);
        let Some(id) = by_cid.or_else(by_kind) else { continue };
        if let Some(track) = p.tracks.iter_mut().find(|t| t.id == id) {
            track.mid = Some(section.mid.clone());
            track.info.mid.clone_from(&section.mid);
            if let Some(format) = section.formats.first()
                && track.info.mime_type.is_empty()
            {
                track.info.mime_type = format.format.codec.mime().into();
            }
            let (sid, mime) = (track.info.sid.clone(), track.info.mime_type.clone());
            for info in p.tracks.iter_mut().map(|t| &mut t.info).filter(|i| i.sid == sid) {
                info.codecs.iter_mut().filter(|c| c.mime_type == mime).for_each(|c| c.mid.clone_from(&section.mid));
            }
            published.push(id);
        }
    }
    (published, unpublished)
}

/// Whether a participant may publish from this source.
pub(super) fn may_publish(permission: Option<&proto::ParticipantPermission>, source: i32) -> bool {
    let Some(permission) = permission else { return false };
    // Nobody could show what comes from somebody that is not there.
    if permission.hidden {
        false
    } else if permission.can_publish_sources.is_empty() {
        permission.can_publish
    } else {
        permission.can_publish_sources.contains(&source)
    }
}

/// What a section carries of a client that says nothing else of it.
pub(super) fn source_of(kind: Kind) -> proto::TrackSource {
    if kind == Kind::Video { proto::TrackSource::Camera } else { proto::TrackSource::Microphone }
}

/// Makes a track of every section in which a client may send that says nothing else of itself (WHIP).
pub(super) fn publish_all(p: &mut Participant, offer: &Description, names: impl Iterator<Item = (TrackId, String)>, tracks_max: usize) {
    for (section, (id, random)) in offer.sections.iter().zip(names) {
        let is_new = !p.tracks.iter().any(|t| t.mid.as_ref() == Some(&section.mid));
        let sends = section.direction.sends() && !section.is_rejected && !section.formats.is_empty();
        let source = source_of(section.kind);
        let may = may_publish(p.info.permission.as_ref(), source as i32);
        if section.kind == Kind::Application || !may || !sends || !is_new || p.tracks.len() >= tracks_max {
            continue;
        }
        let is_video = section.kind == Kind::Video;
        let quality = [proto::VideoQuality::Low, proto::VideoQuality::Medium, proto::VideoQuality::High];
        let layers = section.rids.iter().zip(quality).map(|(_, q)| proto::VideoLayer { quality: q as i32, ..Default::default() });
        let mime = section.formats[0].format.codec.mime();
        let request = proto::AddTrackRequest {
            cid: section.msid.as_ref().map_or_else(|| section.mid.clone(), |(_, track)| track.clone()),
            name: source.as_str_name().to_ascii_lowercase(),
            r#type: if is_video { proto::TrackType::Video } else { proto::TrackType::Audio } as i32,
            source: source as i32,
            layers: layers.collect(),
            simulcast_codecs: vec![proto::SimulcastCodec { codec: mime.into(), ..Default::default() }],
            ..Default::default()
        };
        let info = track_info(&request, random);
        p.tracks.push(Track::new(id, request.cid, info));
    }
}

/// Gives each subscription without a section a free one. Those that no section of the offer has a codec for take their
/// backup or, without one, are given up; their sids.
pub(super) fn assign_subscriptions(p: &mut Participant, offer: &Description) -> Vec<String> {
    let of_kind = |kind: Kind| offer.sections.iter().filter(move |s| s.kind == kind && !s.is_rejected && !s.formats.is_empty());
    let has_codec = |section: &Section, codec: Codec| section.formats.iter().any(|f| f.format.codec == codec);
    let is_hopeless = |s: &Subscription| {
        let codec = s.codec.filter(|_| of_kind(s.kind).next().is_some());
        codec.is_some_and(|codec| !of_kind(s.kind).any(|section| has_codec(section, codec)))
    };
    p.subscriptions.iter_mut().filter(|s| is_hopeless(s)).for_each(Subscription::fall_back);
    let hopeless = p.subscriptions.extract_if(.., |s| is_hopeless(s)).map(|s| s.sid).collect();
    let slots: Vec<&Section> = slots(offer).collect();
    for subscription in &mut p.subscriptions {
        if subscription.mid.as_ref().is_some_and(|mid| !slots.iter().any(|s| s.mid == *mid)) {
            subscription.mid = None;
            subscription.is_routed = false;
        }
    }
    // A player's sections keep their sources.
    let sources: Vec<_> = p.slots().iter().map(|s| (s.mid.clone(), s.ssrc, s.rtx)).collect();
    let sections = &mut p.sections;
    let gives_in = sections.gives_in();
    sections.free = (0, 0);
    sections.free_described = 0;
    for slot in &slots {
        if p.subscriptions.iter().any(|s| s.mid.as_ref() == Some(&slot.mid)) {
            continue;
        }
        let waits = |s: &Subscription| s.waits_for_section() && s.kind == slot.kind;
        let fitting = p.subscriptions.iter().position(|s| waits(s) && can_carry(slot, s.codec));
        // A section that cannot carry it is given only when none that could is there.
        let is_last =
            || !slots.iter().any(|s| can_carry(s, Some(Codec::Av1)) && !p.subscriptions.iter().any(|o| o.mid.as_ref() == Some(&s.mid)));
        let given_in = || p.subscriptions.iter().position(|s| gives_in && waits(s)).filter(|_| is_last());
        if let Some(at) = fitting.or_else(given_in) {
            let waiting = &mut p.subscriptions[at];
            waiting.mid = Some(slot.mid.clone());
            if let Some((ssrc, rtx)) = sources.iter().find(|(mid, ..)| *mid == slot.mid).map(|(_, ssrc, rtx)| (*ssrc, *rtx)) {
                (waiting.ssrc, waiting.rtx) = (ssrc, rtx);
            }
            if waiting.codec == Some(Codec::Av1) {
                sections.described_asked = 0;
            }
        } else if slot.kind == Kind::Audio {
            sections.free.0 += 1;
        } else {
            sections.free.1 += 1;
            sections.free_described += u32::from(can_carry(slot, Some(Codec::Av1)));
        }
    }
    hopeless
}

/// Sections of an offer that can carry a track to the client.
fn slots(offer: &Description) -> impl Iterator<Item = &Section> {
    let is_slot = |s: &&Section| !s.is_rejected && s.direction.receives() && !s.direction.sends() && s.kind != Kind::Application;
    offer.sections.iter().filter(is_slot)
}

/// How many of them there are: audio, video.
pub(super) fn slots_of(offer: &Description) -> (u32, u32) {
    let count = |kind: Kind| slots(offer).filter(|s| s.kind == kind).count() as u32;
    (count(Kind::Audio), count(Kind::Video))
}

/// AV1's layers cannot be put together without the dependency descriptor, and a browser's first, empty sections lack it.
fn can_carry(slot: &Section, codec: Option<Codec>) -> bool {
    codec != Some(Codec::Av1) || slot.extensions.iter().any(|(_, e)| *e == Extension::DependencyDescriptor)
}

/// The codec that a publisher asked for.
pub(super) fn codec_of(info: &proto::TrackInfo) -> Option<Codec> {
    Codec::from_name(info.mime_type.rsplit('/').next().unwrap_or_default())
}

/// How the publisher wants its sound to be sent. What is encrypted end to end stays in one piece: no redundancy.
pub(super) fn voice_of(info: &proto::TrackInfo) -> Voice {
    let has = |feature| info.audio_features.contains(&(feature as i32));
    Voice {
        redundancy: !info.disable_red && info.encryption == proto::encryption::Type::None as i32,
        dtx: !has(proto::AudioTrackFeature::TfNoDtx),
        stereo: has(proto::AudioTrackFeature::TfStereo),
    }
}

pub(super) fn uses_of(p: &Participant, offer: &Description) -> Vec<Use> {
    let of = |section: &Section| {
        if section.kind == Kind::Application {
            return Use::Data;
        }
        if let Some(track) = p.tracks.iter().find(|t| t.mid.as_ref() == Some(&section.mid)) {
            return Use::Receive { track: track.id, prefer: codec_of(&track.info), voice: voice_of(&track.info) };
        }
        let sent = p.subscriptions.iter().find(|s| p.subscriber.is_none() && s.mid.as_ref() == Some(&section.mid));
        let kept =
            || p.slots().iter().find(|s| s.mid == section.mid).map(|s| Use::Keep { ssrc: s.ssrc, rtx: s.rtx, stream: s.mid.clone() });
        sent.map(use_of).or_else(kept).unwrap_or(Use::Idle)
    };
    offer.sections.iter().map(of).collect()
}

pub(super) fn use_of(s: &Subscription) -> Use {
    Use::Send {
        track: s.track,
        ssrc: s.ssrc,
        rtx: s.rtx,
        codec: s.codec,
        redundancy: s.redundancy,
        stream: s.stream.clone(),
        label: s.sid.clone(),
    }
}

/// The stream that a track is part of on a client: by itself, or, to be played in time with each other, sound and picture of
/// one source together.
pub(super) fn stream_of(publisher_sid: &str, info: &proto::TrackInfo, is_synced: bool) -> String {
    let name = if is_synced { stream_named(info.source) } else { "" };
    format!("{publisher_sid}|{}", if name.is_empty() { info.sid.as_str() } else { name })
}

/// What is seen and heard together.
fn stream_named(source: i32) -> &'static str {
    match proto::TrackSource::try_from(source) {
        Ok(proto::TrackSource::Camera | proto::TrackSource::Microphone) => "camera",
        Ok(proto::TrackSource::ScreenShare | proto::TrackSource::ScreenShareAudio) => "screen_share",
        _ => "",
    }
}

pub(super) fn subscribe(room: RoomId, session: SessionId, s: &Subscription) -> Command {
    Command::Subscribe { room, session, track: s.track, publisher: s.publisher, is_video: s.kind == Kind::Video, home: s.home }
}

pub(super) fn want(room: RoomId, session: SessionId, s: &Subscription) -> Command {
    let wanted = Wanted { layer_max: s.layer_max, temporal_max: s.temporal_max };
    Command::Want { room, session, track: s.track, wanted: s.enabled.then_some(wanted) }
}

/// The smallest layer that covers the size asked for, else the quality by name.
pub(super) fn wanted_layer(request: &proto::UpdateTrackSettings, layers: &[proto::VideoLayer]) -> u8 {
    if request.width > 0 && !layers.is_empty() {
        let covering = layers.iter().filter(|l| l.width >= request.width || l.height >= request.height).map(|l| l.quality).min();
        return covering.unwrap_or(proto::VideoQuality::High as i32).clamp(0, 2) as u8;
    }
    request.quality.clamp(0, 2) as u8
}

/// The temporal layers that a frame rate needs: browsers halve it with each layer, from 30 frames a second.
pub(super) fn wanted_temporal(fps: u32) -> u8 {
    match fps {
        1..=8 => 0,
        9..=15 => 1,
        _ => TEMPORAL_ALL,
    }
}

pub(super) fn layers_of(info: &proto::TrackInfo) -> Vec<proto::VideoLayer> {
    info.codecs.first().map(|c| c.layers.clone()).unwrap_or_default()
}

pub(super) fn kind_of(info: &proto::TrackInfo) -> Kind {
    if info.r#type == proto::TrackType::Video as i32 { Kind::Video } else { Kind::Audio }
}

/// As tokens and the dashboard call it.
pub(super) fn source_name(source: i32) -> &'static str {
    match proto::TrackSource::try_from(source) {
        Ok(proto::TrackSource::Camera) => "camera",
        Ok(proto::TrackSource::Microphone) => "microphone",
        Ok(proto::TrackSource::ScreenShare) => "screen_share",
        Ok(proto::TrackSource::ScreenShareAudio) => "screen_share_audio",
        Ok(proto::TrackSource::Unknown) | Err(_) => "unknown",
    }
}

pub(super) fn source_named(name: &str) -> Option<proto::TrackSource> {
    Some(match name {
        "camera" => proto::TrackSource::Camera,
        "microphone" => proto::TrackSource::Microphone,
        "screen_share" => proto::TrackSource::ScreenShare,
        "screen_share_audio" => proto::TrackSource::ScreenShareAudio,
        _ => return None,
    })
}

pub(super) fn kind_named(name: &str) -> proto::participant_info::Kind {
    use proto::participant_info::Kind;
    match name {
        "ingress" => Kind::Ingress,
        "egress" => Kind::Egress,
        "sip" => Kind::Sip,
        "agent" => Kind::Agent,
        "connector" => Kind::Connector,
        _ => Kind::Standard,
    }
}

/// What the request says, with a sid whose letters tell kind and source as the SDKs expect.
#[allow(deprecated, reason = "clients of some age read the old fields")]
pub(super) fn track_info(request: &proto::AddTrackRequest, random: String) -> proto::TrackInfo {
    let is_video = request.r#type == proto::TrackType::Video as i32;
    let source = match proto::TrackSource::try_from(request.source) {
        Ok(proto::TrackSource::Camera) => 'C',
        Ok(proto::TrackSource::Microphone) => 'M',
        Ok(proto::TrackSource::ScreenShare) => 'S',
        Ok(proto::TrackSource::ScreenShareAudio) => 's',
        _ => 'U',
    };
    let mut codecs: Vec<proto::SimulcastCodecInfo> = request
        .simulcast_codecs
        .iter()
        .filter(|c| !c.codec.is_empty())
        .map(|c| {
            let kind = if is_video { "video" } else { "audio" };
            let name = if c.codec.contains('/') { c.codec.clone() } else { format!("{kind}/{}", c.codec) };
            let layers = if c.layers.is_empty() { request.layers.clone() } else { c.layers.clone() };
            proto::SimulcastCodecInfo {
                mime_type: name,
                cid: c.cid.clone(),
                layers,
                video_layer_mode: c.video_layer_mode,
                ..Default::default()
            }
        })
        .collect();
    if codecs.is_empty() {
        let mime_type = if is_video { "video/VP8" } else { "audio/opus" }.to_owned();
        let codec = proto::SimulcastCodecInfo { mime_type, cid: request.cid.clone(), layers: request.layers.clone(), ..Default::default() };
        codecs.push(codec);
    }
    let mut audio_features = request.audio_features.clone();
    // Clients of some age say it in fields of their own.
    for (feature, is_asked) in
        [(proto::AudioTrackFeature::TfStereo, request.stereo), (proto::AudioTrackFeature::TfNoDtx, request.disable_dtx)]
    {
        if is_asked && !audio_features.contains(&(feature as i32)) {
            audio_features.push(feature as i32);
        }
    }
    proto::TrackInfo {
        sid: format!("TR_{}{source}{random}", if is_video { 'V' } else { 'A' }),
        r#type: request.r#type,
        name: request.name.clone(),
        muted: request.muted,
        width: request.width,
        height: request.height,
        simulcast: request.layers.len() > 1,
        source: request.source,
        layers: request.layers.clone(),
        mime_type: codecs.first().map(|c| c.mime_type.clone()).unwrap_or_default(),
        codecs,
        disable_red: request.disable_red,
        encryption: request.encryption,
        stream: if request.stream.is_empty() { stream_named(request.source).into() } else { request.stream.clone() },
        stereo: audio_features.contains(&(proto::AudioTrackFeature::TfStereo as i32)),
        disable_dtx: audio_features.contains(&(proto::AudioTrackFeature::TfNoDtx as i32)),
        audio_features,
        backup_codec_policy: request.backup_codec_policy,
        ..Default::default()
    }
}

pub(super) fn publish_codecs() -> Vec<proto::Codec> {
    ["audio/opus", "audio/red", "video/VP8", "video/H264", "video/VP9", "video/AV1", "video/H265"]
        .into_iter()
        .map(|mime| proto::Codec { mime: mime.into(), ..Default::default() })
        .collect()
}

/// Longest name, metadata and attributes of a participant, bytes: everybody in the room is told them.
const NAME_MAX: usize = 256;
const METADATA_MAX: usize = 64 * 1024;
const ATTRIBUTES_MAX: usize = 64 * 1024;

pub(super) fn is_room_too_long(name: &str, metadata: &str) -> bool {
    name.len() > NAME_MAX || metadata.len() > METADATA_MAX
}

pub(super) fn is_too_long(name: &str, metadata: &str, attributes: &HashMap<String, String>) -> bool {
    let attributes: usize = attributes.iter().map(|(key, value)| key.len() + value.len()).sum();
    name.len() > NAME_MAX || metadata.len() > METADATA_MAX || attributes > ATTRIBUTES_MAX
}

/// Attributes that only the server writes.
pub(super) fn is_reserved(key: &str) -> bool {
    key.starts_with("postern.")
}
