//! Rooms without a network: what each participant is told, and what the data plane is.

use super::*;
use crate::control::auth::VideoGrants;
use crate::wire::sdp;
use proto::leave_request::Action;
use std::sync::Mutex;

const OFFER: &str = include_str!("../../../tests/vectors/offer_chromium.sdp");

struct Lab {
    rooms: Rooms,
    mail: Arc<Mutex<Vec<Command>>>,
}

/// One client: its session and what it was told.
struct Client {
    session: SessionId,
    queue: mpsc::Receiver<Box<Down>>,
    signal: Signal,
}

impl Client {
    fn told(&mut self) -> Vec<Down> {
        std::iter::from_fn(|| self.queue.try_recv().ok()).map(|message| *message).collect()
    }

    /// The kinds of what it was told, in order.
    fn kinds(&mut self) -> Vec<String> {
        let name = |m: &Down| format!("{m:?}").split(['(', ' ', '{']).next().unwrap_or_default().to_owned();
        self.told().iter().map(name).collect()
    }
}

fn lab(config: impl FnOnce(&mut crate::config::Rooms)) -> Lab {
    let mail = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&mail);
    let gauges = Arc::new(Gauges::default());
    let mut rooms = crate::config::Rooms::default();
    config(&mut rooms);
    let around = Surroundings {
        workers: 2,
        mail: Arc::new(move |_, command| sink.lock().expect("alone").push(command)),
        keys: Keys::new(&BTreeMap::from([("key".to_owned(), "secret".to_owned())])),
        turn: Secrets::new("realm", &[7; 32], &[], &HashMap::new()),
        fingerprint: "AA:BB".into(),
        candidates: Candidates { udp: vec!["192.0.2.1:443".parse().expect("an address")], tcp: Vec::new() },
        ports: Ports { turn: Some(3478), edge: 443 },
        rooms,
        tracks_per_participant: 4,
        node: "ND_test".into(),
        gauges: Arc::clone(&gauges),
        events: Events::none(Arc::clone(&gauges)),
        audit: Audit::none(gauges),
    };
    Lab { rooms: Rooms::new(around), mail }
}

fn claims(identity: &str) -> Claims {
    let video = VideoGrants { room_join: true, room: "room".into(), ..VideoGrants::default() };
    Claims { iss: "key".into(), sub: identity.into(), exp: u64::MAX / 2, video, ..Claims::default() }
}

impl Lab {
    fn try_join(&mut self, claims: Claims, is_dual: bool) -> Result<Client, JoinError> {
        let (signal, queue) = mpsc::channel(SIGNAL_QUEUE);
        let request = proto::JoinRequest::default();
        let arrival = Arrival { claims, request, caller: caller(), is_dual };
        let session = self.rooms.join(arrival, signal.clone())?;
        Ok(Client { session, queue, signal })
    }

    fn join(&mut self, identity: &str) -> Client {
        let mut client = self.try_join(claims(identity), false).expect("it joins");
        client.told();
        client
    }

    /// Publishes a microphone and a camera with an offer as a browser writes it.
    fn publish(&mut self, client: &mut Client) {
        for (cid, kind, source) in
            [("a", proto::TrackType::Audio, proto::TrackSource::Microphone), ("v", proto::TrackType::Video, proto::TrackSource::Camera)]
        {
            let request = proto::AddTrackRequest { cid: cid.into(), r#type: kind as i32, source: source as i32, ..Default::default() };
            self.rooms.add_track(client.session, request);
        }
        self.rooms.offer(client.session, &proto::SessionDescription { r#type: "offer".into(), sdp: OFFER.into(), ..Default::default() });
    }

    fn commands(&self) -> Vec<Command> {
        std::mem::take(&mut self.mail.lock().expect("alone"))
    }

    fn info(&mut self, client: &Client) -> proto::ParticipantInfo {
        self.rooms.participant(client.session).expect("it is here").info.clone()
    }
}

fn caller() -> Caller {
    Caller { host: "localhost".into(), address: None }
}

fn updates(told: &[Down]) -> Vec<proto::ParticipantInfo> {
    let of = |m: &Down| if let Down::Update(u) = m { u.participants.clone() } else { Vec::new() };
    told.iter().flat_map(of).collect()
}

#[test]
fn a_join_is_told_first_and_the_others_hear_of_it() {
    let mut lab = lab(|_| {});
    let mut ada = lab.try_join(claims("ada"), false).expect("it joins");
    assert_eq!(ada.kinds(), ["Join", "RefreshToken"]);
    let mut bob = lab.join("bob");
    assert_eq!(updates(&ada.told()).iter().map(|p| p.identity.as_str()).collect::<Vec<_>>(), ["bob"]);
    lab.rooms.remove(bob.session, proto::DisconnectReason::ClientInitiated);
    let gone = updates(&ada.told());
    assert_eq!((gone[0].state, gone[0].disconnect_reason), (proto::participant_info::State::Disconnected as i32, 1));
    assert!(bob.kinds().is_empty());
}

#[test]
fn whoever_is_hidden_is_not_told_of_and_sees_all() {
    let mut lab = lab(|_| {});
    let mut ada = lab.join("ada");
    let mut hidden = claims("eve");
    hidden.video.hidden = true;
    let mut eve = lab.try_join(hidden, false).expect("it joins");
    assert!(updates(&ada.told()).is_empty());
    let told = eve.told();
    let Down::Join(join) = &told[0] else { panic!("{told:?}") };
    assert_eq!(join.other_participants.len(), 1);
    assert_eq!(join.room.as_ref().map(|r| r.num_participants), Some(1));
    let request = proto::AddTrackRequest { cid: "c".into(), ..Default::default() };
    lab.rooms.add_track(eve.session, request);
    let told = eve.told();
    assert!(matches!(&told[0], Down::RequestResponse(r) if r.reason == proto::request_response::Reason::NotAllowed as i32));
    lab.rooms.remove(eve.session, proto::DisconnectReason::ClientInitiated);
    assert!(updates(&ada.told()).is_empty(), "nor of its leaving");
}

#[test]
fn two_peer_connections_are_offered_what_is_there_and_what_comes() {
    let mut lab = lab(|_| {});
    let mut ada = lab.join("ada");
    lab.publish(&mut ada);
    let mut bob = lab.try_join(claims("bob"), true).expect("it joins");
    let told = bob.told();
    let Down::Join(join) = &told[0] else { panic!("{told:?}") };
    assert!(join.subscriber_primary);
    let Some(Down::Offer(offer)) = told.iter().find(|m| matches!(m, Down::Offer(_))) else { panic!("{told:?}") };
    let read = sdp::Description::parse(&offer.sdp).expect("an offer");
    let kinds: Vec<&str> = read.sections.iter().map(|s| s.kind.name()).collect();
    assert_eq!((kinds, offer.mid_to_track_id.len()), (vec!["application", "audio", "video"], 2));
    lab.commands();
    // Its answer takes the sound; the picture's codec it does not know.
    let answer =
        offer.sdp.replace("a=setup:actpass", "a=setup:active").replace("a=sendonly", "a=recvonly").replace("m=video 9", "m=video 0");
    lab.rooms
        .answered(bob.session, &proto::SessionDescription { r#type: "answer".into(), sdp: answer.clone(), id: 99, ..Default::default() });
    assert!(lab.commands().is_empty(), "an answer to another offer");
    lab.rooms
        .answered(bob.session, &proto::SessionDescription { r#type: "answer".into(), sdp: answer, id: offer.id, ..Default::default() });
    let subscribed = lab.commands().iter().filter(|c| matches!(c, Command::Subscribe { .. })).count();
    assert_eq!(subscribed, 1);
    let told = bob.told();
    let refused = |m: &Down| matches!(m, Down::SubscriptionResponse(r) if r.err == proto::SubscriptionError::SeCodecUnsupported as i32);
    assert!(told.iter().any(refused), "{told:?}");
    let mut is_told = |lab: &mut Lab, after: u64| {
        lab.rooms.tell_heard(mono() + Duration::from_millis(after));
        ada.told().iter().any(|m| matches!(m, Down::TrackSubscribed(_)))
    };
    assert!(!is_told(&mut lab, 0), "it may not know its publication yet");
    assert!(is_told(&mut lab, 500), "the publisher hears that it is heard");
    assert!(!is_told(&mut lab, 500), "once");
}

#[test]
fn a_publisher_says_who_may_have_its_tracks() {
    let mut lab = lab(|_| {});
    let (mut ada, mut bob) = (lab.join("ada"), lab.join("bob"));
    lab.publish(&mut ada);
    bob.told();
    let nobody = proto::SubscriptionPermission::default();
    lab.rooms.set_listeners(ada.session, nobody);
    let allowed = |told: &[Down]| -> Vec<bool> {
        let of = |m: &Down| if let Down::SubscriptionPermissionUpdate(u) = m { Some(u.allowed) } else { None };
        told.iter().filter_map(of).collect()
    };
    assert_eq!(allowed(&bob.told()), [false, false]);
    let for_bob = proto::TrackPermission { participant_identity: "bob".into(), all_tracks: true, ..Default::default() };
    let some = proto::SubscriptionPermission { all_participants: false, track_permissions: vec![for_bob] };
    lab.rooms.set_listeners(ada.session, some);
    assert_eq!(allowed(&bob.told()), [true, true]);
    let mut eve = lab.try_join(claims("eve"), false).expect("it joins");
    assert_eq!(allowed(&eve.told()), [false, false]);
}

#[test]
fn permissions_change_during_a_call() {
    let mut lab = lab(|_| {});
    let (mut ada, mut bob) = (lab.join("ada"), lab.join("bob"));
    lab.publish(&mut ada);
    ada.told();
    bob.told();
    let permission = proto::ParticipantPermission { can_subscribe: true, can_publish: false, ..Default::default() };
    lab.rooms.set_permission(ada.session, permission);
    let kinds = ada.kinds();
    assert_eq!(kinds.iter().filter(|k| *k == "TrackUnpublished").count(), 2, "{kinds:?}");
    assert!(kinds.contains(&"RefreshToken".to_owned()), "the new token says the same");
    assert!(lab.info(&ada).tracks.is_empty());
    assert!(updates(&bob.told()).last().is_some_and(|p| p.tracks.is_empty()));
    assert!(lab.commands().iter().any(|c| matches!(c, Command::Permit { can_publish_data: false, .. })));
}

#[test]
fn a_removed_participant_needs_a_later_token() {
    let mut lab = lab(|_| {});
    let (_ada, mut bob) = (lab.join("ada"), lab.join("bob"));
    let request = proto::RoomParticipantIdentity { room: "room".into(), identity: "bob".into(), revoke_token_ts: 1_000 };
    RoomService(&mut lab.rooms).remove_participant(&request).expect("it is there");
    let told = bob.told();
    assert!(matches!(told.last(), Some(Down::Leave(l)) if l.action == Action::Disconnect as i32 && l.reason == 4), "{told:?}");
    assert!(matches!(lab.try_join(claims("bob"), false), Err(JoinError::Revoked)));
    let later = Claims { nbf: Some(1_000), ..claims("bob") };
    assert!(lab.try_join(later, false).is_ok());
}

#[test]
fn the_newest_of_one_identity_wins_and_rooms_have_their_limit() {
    let mut lab = lab(|r| r.participants_max = 2);
    let mut first = lab.join("ada");
    let _second = lab.join("ada");
    let told = first.told();
    assert!(matches!(told.last(), Some(Down::Leave(l)) if l.reason == proto::DisconnectReason::DuplicateIdentity as i32), "{told:?}");
    lab.join("bob");
    assert!(matches!(lab.try_join(claims("eve"), false), Err(JoinError::RoomFull)));
}

#[test]
fn a_client_that_comes_back_goes_on_where_it_was() {
    let mut lab = lab(|_| {});
    let mut ada = lab.join("ada");
    lab.publish(&mut ada);
    let sid = lab.info(&ada).sid;
    lab.rooms.signal_lost(ada.session, &ada.signal);
    let (signal, queue) = mpsc::channel(SIGNAL_QUEUE);
    assert_eq!(lab.rooms.resume(&claims("eve"), &sid, &caller(), signal.clone()), None, "somebody else's sid");
    assert_eq!(lab.rooms.resume(&claims("ada"), &sid, &caller(), signal.clone()), Some(ada.session));
    let mut back = Client { session: ada.session, queue, signal };
    assert!(back.kinds().is_empty(), "nothing before its worker has told of its messages");
    lab.rooms.report(Report::LastMessage { session: ada.session, sequence: 5 });
    let kinds = back.kinds();
    assert_eq!(&kinds[..4], ["Reconnect", "Update", "RoomUpdate", "RefreshToken"]);
    // It says that it publishes what nobody here knows.
    let strange = proto::TrackInfo { sid: "TR_strange".into(), ..Default::default() };
    let published = proto::TrackPublishedResponse { track: Some(strange), ..Default::default() };
    lab.rooms.sync_state(ada.session, &proto::SyncState { publish_tracks: vec![published], ..Default::default() });
    let told = back.told();
    assert!(matches!(told.last(), Some(Down::Leave(l)) if l.action == Action::Reconnect as i32 && l.reason == 6), "{told:?}");
}

#[test]
fn in_a_big_room_news_of_listeners_come_together() {
    let mut lab = lab(|_| {});
    let mut first = lab.join("first");
    let others: Vec<Client> = (0..lifetime::BIG_ROOM + 10).map(|n| lab.join(&format!("p{n}"))).collect();
    let told = updates(&first.told());
    assert!(told.len() < lifetime::BIG_ROOM, "{} at once", told.len());
    let room = lab.rooms.rooms.get_mut("room").expect("it is there");
    assert!(room.late_news.len() >= 10);
    room.late_news_due = Some(mono());
    lab.rooms.tick();
    let told = first.told();
    let batches = told.iter().filter(|m| matches!(m, Down::Update(_))).count();
    assert_eq!(batches, 1);
    assert!(updates(&told).len() >= 10);
    drop(others);
}

#[test]
fn data_tracks_have_a_handle_for_each_subscriber() {
    let mut lab = lab(|_| {});
    let (mut ada, mut bob) = (lab.join("ada"), lab.join("bob"));
    let publish = |handle, name: &str| proto::PublishDataTrackRequest { pub_handle: handle, name: name.into(), ..Default::default() };
    ada.told();
    bob.told();
    lab.rooms.publish_data_track(ada.session, publish(7, "sensor"));
    let told = ada.told();
    let Down::PublishDataTrackResponse(response) = &told[0] else { panic!("{told:?}") };
    let sid = response.info.as_ref().expect("its info").sid.clone();
    for (request, reason) in [
        (publish(7, "other"), proto::request_response::Reason::DuplicateHandle),
        (publish(8, "sensor"), proto::request_response::Reason::DuplicateName),
        (publish(0, "zero"), proto::request_response::Reason::InvalidHandle),
        (publish(9, ""), proto::request_response::Reason::InvalidName),
    ] {
        lab.rooms.publish_data_track(ada.session, request);
        let told = ada.told();
        assert!(matches!(&told[0], Down::RequestResponse(r) if r.reason == reason as i32), "{told:?}");
    }
    assert_eq!(updates(&bob.told())[0].data_tracks[0].sid, sid);
    lab.commands();
    let update = proto::update_data_subscription::Update { track_sid: sid.clone(), subscribe: true, ..Default::default() };
    lab.rooms.update_data_subscription(bob.session, &proto::UpdateDataSubscription { updates: vec![update] });
    let told = bob.told();
    let Some(Down::DataTrackSubscriberHandles(handles)) = told.last() else { panic!("{told:?}") };
    assert_eq!(handles.sub_handles.values().map(|t| t.track_sid.as_str()).collect::<Vec<_>>(), [sid.as_str()]);
    let routed = |c: &Command| matches!(c, Command::RouteData { handle: 7, hearers, .. } if hearers.len() == 1);
    assert!(lab.commands().iter().any(routed));
    lab.rooms.remove(bob.session, proto::DisconnectReason::ClientInitiated);
    assert!(lab.commands().iter().any(|c| matches!(c, Command::RouteData { handle: 7, hearers, .. } if hearers.is_empty())));
}

#[test]
fn a_layer_that_nobody_wants_is_told_late_and_one_that_is_wanted_at_once() {
    let mut lab = lab(|_| {});
    let (mut ada, bob) = (lab.join("ada"), lab.join("bob"));
    lab.publish(&mut ada);
    let camera = lab.info(&ada).tracks.iter().find(|t| t.r#type == 1).expect("a camera").sid.clone();
    lab.rooms.offer(
        bob.session,
        &proto::SessionDescription { sdp: OFFER.replace("sendonly", "recvonly").replace("a=sendrecv", "a=recvonly"), ..Default::default() },
    );
    ada.told();
    let of = |told: &[Down]| -> Vec<Vec<bool>> {
        let of = |m: &Down| match m {
            Down::SubscribedQualityUpdate(u) => Some(u.subscribed_codecs[0].qualities.iter().map(|q| q.enabled).collect()),
            _ => None,
        };
        told.iter().filter_map(of).collect()
    };
    let want = |quality: proto::VideoQuality| proto::UpdateTrackSettings {
        track_sids: vec![camera.clone()],
        quality: quality as i32,
        ..Default::default()
    };
    lab.rooms.track_settings(bob.session, &want(proto::VideoQuality::Low));
    assert!(of(&ada.told()).is_empty(), "not yet");
    lab.rooms.tick_quality(mono() + Duration::from_secs(11));
    assert_eq!(of(&ada.told()), [[true, false, false]]);
    lab.rooms.track_settings(bob.session, &want(proto::VideoQuality::High));
    assert_eq!(of(&ada.told()), [[true, true, true]]);
}

#[test]
fn rooms_stay_a_while_when_they_are_empty() {
    let mut lab = lab(|r| (r.empty_timeout_s, r.departure_timeout_s) = (300, 20));
    let request = proto::CreateRoomRequest { name: "empty".into(), empty_timeout: 1, ..Default::default() };
    RoomService(&mut lab.rooms).create_room(request).expect("made");
    let ada = lab.join("ada");
    lab.rooms.remove(ada.session, proto::DisconnectReason::ClientInitiated);
    lab.rooms.tick();
    assert_eq!(lab.rooms.rooms.len(), 2);
    for room in lab.rooms.rooms.values_mut() {
        room.empty_since = room.empty_since.and_then(|at| at.checked_sub(Duration::from_secs(2)));
    }
    lab.rooms.tick();
    assert_eq!(lab.rooms.rooms.keys().collect::<Vec<_>>(), ["room"]);
    for room in lab.rooms.rooms.values_mut() {
        room.empty_since = room.empty_since.and_then(|at| at.checked_sub(Duration::from_secs(20)));
    }
    lab.rooms.tick();
    assert!(lab.rooms.rooms.is_empty());
}

#[test]
fn over_http_nobody_publishes_what_its_token_does_not_allow() {
    let both = OFFER.replacen("a=sendonly", "a=recvonly", 1);
    let mut lab = lab(|_| {});
    let mut player = claims("player");
    player.video.can_publish = Some(false);
    // A player whose offer sends something too: that is not taken.
    let whole = lab.rooms.open(player.clone(), Purpose::Play { of: None }, caller(), "OBS 31", &both).expect("it plays");
    assert!(lab.rooms.participant(whole.session).expect("it is here").tracks.is_empty());
    assert!(matches!(lab.rooms.open(player, Purpose::Publish, caller(), "OBS 31", OFFER), Err(JoinError::NotAllowed)));
    let mut voice = claims("voice");
    voice.video.can_publish_sources = vec!["microphone".into()];
    let whole = lab.rooms.open(voice, Purpose::Publish, caller(), "OBS 31", OFFER).expect("it publishes");
    let sources =
        |lab: &mut Lab| lab.rooms.participant(whole.session).expect("it is here").tracks.iter().map(|t| t.info.source).collect::<Vec<_>>();
    assert_eq!(sources(&mut lab), [proto::TrackSource::Microphone as i32]);
    // What was taken stays taken over an ICE restart.
    lab.rooms.set_permission(whole.session, proto::ParticipantPermission { can_publish: false, ..Default::default() });
    lab.rooms.restart_ice(whole.session, "fresh", &"p".repeat(24)).expect("restarted");
    assert!(sources(&mut lab).is_empty());
}

#[test]
fn an_offer_of_ours_carries_each_track_once() {
    let mut lab = lab(|_| {});
    let mut ada = lab.join("ada");
    lab.publish(&mut ada);
    let mut bob = lab.try_join(claims("bob"), true).expect("it joins");
    let offers = |told: Vec<Down>| -> Vec<proto::SessionDescription> {
        told.into_iter().filter_map(|m| if let Down::Offer(o) = m { Some(o) } else { None }).collect()
    };
    let first = offers(bob.told()).pop().expect("an offer");
    let sid = lab.info(&ada).tracks[0].sid.clone();
    // While that is out, a track is given up and wanted again.
    for subscribe in [false, true] {
        lab.rooms.update_subscription(
            bob.session,
            &proto::UpdateSubscription { track_sids: vec![sid.clone()], subscribe, ..Default::default() },
        );
    }
    assert!(offers(bob.told()).is_empty(), "one offer at a time");
    let answer = first.sdp.replace("a=setup:actpass", "a=setup:active").replace("a=sendonly", "a=recvonly");
    lab.rooms
        .answered(bob.session, &proto::SessionDescription { r#type: "answer".into(), sdp: answer, id: first.id, ..Default::default() });
    let second = offers(bob.told()).pop().expect("another one");
    let read = sdp::Description::parse(&second.sdp).expect("an offer");
    let carried = read.sections.iter().filter(|s| s.msid.as_ref().is_some_and(|(_, track)| *track == sid)).count();
    assert_eq!(carried, 1, "{}", second.sdp);
    let mut sources: Vec<u32> = read.sections.iter().flat_map(|s| s.ssrcs.clone()).collect();
    sources.sort_unstable();
    let before = sources.len();
    sources.dedup();
    assert_eq!(sources.len(), before, "no source twice");
}

fn drop_out(lab: &mut Lab, client: &mut Client) -> String {
    let sid = lab.info(client).sid;
    lab.rooms.report(Report::Unreachable { session: client.session });
    assert!(matches!(client.told().last(), Some(Down::Leave(l)) if l.action == Action::Reconnect as i32));
    sid
}

#[test]
fn who_drops_out_is_gone_for_the_others_and_resumes_as_it_was() {
    let mut lab = lab(|_| {});
    let (mut ada, mut bob) = (lab.join("ada"), lab.join("bob"));
    for client in [&mut ada, &mut bob] {
        lab.rooms.report(Report::Live { session: client.session, profile: crate::engine::srtp::Profile::AeadAes128Gcm });
        lab.publish(client);
    }
    bob.told();
    lab.commands();
    let before = lab.info(&ada);
    let sid = drop_out(&mut lab, &mut ada);
    let gone = updates(&bob.told());
    assert_eq!((gone[0].sid.as_str(), gone[0].state), (sid.as_str(), proto::participant_info::State::Disconnected as i32));
    assert!(lab.commands().iter().any(|c| matches!(c, Command::StepOut { session } if *session == ada.session)));
    assert!(RoomService(&mut lab.rooms).participant("room", "ada").is_err(), "nobody sees it");

    assert_eq!(lab.rooms.resume(&claims("ada"), &sid, &caller(), ada.signal.clone()), Some(ada.session));
    let back = updates(&bob.told());
    let back = back.last().expect("told of it");
    assert_eq!((&back.tracks, back.state, &back.sid), (&before.tracks, before.state, &sid));
    let commands = lab.commands();
    assert!(commands.iter().any(|c| matches!(c, Command::StepIn { session } if *session == ada.session)));
    assert_eq!(commands.iter().filter(|c| matches!(c, Command::Publish { .. })).count(), 2);
    assert!(!commands.iter().any(|c| matches!(c, Command::Close { .. })));
    lab.rooms.report(Report::LastMessage { session: ada.session, sequence: 3 });
    let told = ada.told();
    assert!(matches!(&told[0], Down::Reconnect(r) if r.last_message_seq == 3), "{told:?}");
    assert!(updates(&told).iter().all(|p| p.state != proto::participant_info::State::Disconnected as i32));
}

#[test]
fn who_dropped_out_does_not_come_back_when_removed_replaced_or_away_for_too_long() {
    let ways: [fn(&mut Lab); 4] = [
        |lab| {
            let request = proto::RoomParticipantIdentity { room: "room".into(), identity: "ada".into(), ..Default::default() };
            RoomService(&mut lab.rooms).remove_participant(&request).expect("it is known");
        },
        |lab| drop(lab.join("ada")),
        |lab| lab.rooms.forget_long_absent(mono() + Duration::from_secs(60)),
        |lab| lab.rooms.finish("room"),
    ];
    for way in ways {
        let mut lab = lab(|_| {});
        let mut ada = lab.join("ada");
        lab.rooms.report(Report::Live { session: ada.session, profile: crate::engine::srtp::Profile::AeadAes128Gcm });
        let sid = drop_out(&mut lab, &mut ada);
        lab.commands();
        way(&mut lab);
        assert!(lab.commands().iter().any(|c| matches!(c, Command::Close { session } if *session == ada.session)));
        assert_eq!(lab.rooms.resume(&claims("ada"), &sid, &caller(), ada.signal.clone()), None);
    }
}

#[test]
fn who_cannot_decode_a_picture_gets_its_other_codec_and_then_all_do() {
    let rows = [(proto::BackupCodecPolicy::PreferRegression, true), (proto::BackupCodecPolicy::Simulcast, false)];
    for (policy, replaces) in rows {
        let mut lab = lab(|_| {});
        let (mut ada, eve) = (lab.join("ada"), lab.join("eve"));
        let codec = |codec: &str| proto::SimulcastCodec { codec: codec.into(), ..Default::default() };
        let camera = proto::AddTrackRequest {
            cid: "track".into(),
            r#type: proto::TrackType::Video as i32,
            simulcast_codecs: vec![codec("av1"), codec("vp8")],
            backup_codec_policy: policy as i32,
            ..Default::default()
        };
        lab.rooms.add_track(ada.session, camera);
        let offer = |sdp: &str| proto::SessionDescription { r#type: "offer".into(), sdp: sdp.into(), ..Default::default() };
        lab.rooms.offer(ada.session, &offer(OFFER));
        let receives = OFFER.replace("a=sendonly", "a=recvonly").replace("a=sendrecv", "a=recvonly");
        lab.rooms.offer(eve.session, &offer(&receives));
        let sid = lab.info(&ada).tracks[0].sid.clone();
        // The tracks that each is sent.
        let sent = |commands: &[Command]| -> Vec<(SessionId, TrackId)> {
            let of = |c: &Command| if let Command::Subscribe { session, track, .. } = c { Some((*session, *track)) } else { None };
            commands.iter().filter_map(of).collect()
        };
        let primary = sent(&lab.commands())[0].1;
        ada.told();

        // One that has no AV1, and one whose answer says so.
        let bob = lab.join("bob");
        let poor = receives.lines().filter(|l| !l.contains("AV1") && !l.contains("fmtp:45")).fold(String::new(), |all, l| all + l + "\r\n");
        lab.rooms.offer(bob.session, &offer(&poor));
        let mut old = lab.try_join(claims("old"), true).expect("it joins");
        let first = |told: Vec<Down>| told.into_iter().find_map(|m| if let Down::Offer(o) = m { Some(o) } else { None }).expect("an offer");
        let ours = first(old.told());
        let answer =
            ours.sdp.replace("a=setup:actpass", "a=setup:active").replace("a=sendonly", "a=recvonly").replace("m=video 9", "m=video 0");
        lab.rooms
            .answered(old.session, &proto::SessionDescription { r#type: "answer".into(), sdp: answer, id: ours.id, ..Default::default() });
        assert_eq!(sent(&lab.commands()), [], "it is not there yet");
        let told = ada.told();
        let wanted =
            told.iter().find_map(|m| if let Down::SubscribedQualityUpdate(u) = m { Some(u) } else { None }).expect("it is asked for");
        let codecs = wanted.subscribed_codecs.iter().map(|c| (c.codec.as_str(), c.qualities.iter().all(|q| q.enabled)));
        assert_eq!(codecs.collect::<Vec<_>>(), [("av1", true), ("vp8", true)]);
        assert_eq!(wanted.track_sid, sid);

        let more = proto::AddTrackRequest { cid: "more".into(), sid: sid.clone(), r#type: 1, ..Default::default() };
        let strange = proto::AddTrackRequest { sid: "TR_none".into(), cid: "strange".into(), r#type: 1, ..Default::default() };
        lab.rooms.add_track(ada.session, more);
        lab.rooms.add_track(ada.session, strange);
        let told = ada.told();
        assert!(
            matches!(&told[0], Down::TrackPublished(p) if p.cid == "more" && p.track.as_ref().is_some_and(|t| t.sid == sid)),
            "{told:?}"
        );
        assert!(matches!(&told[1], Down::RequestResponse(r) if r.reason == proto::request_response::Reason::NotFound as i32), "{told:?}");
        let (head, media) = OFFER.split_at(OFFER.find("m=video").expect("a picture"));
        let (video, rest) = media.split_at(media.find("m=application").expect("channels"));
        let again = video.replace("a=mid:1", "a=mid:3").replace("stream track", "stream more");
        let both = format!("{head}{video}{rest}{again}").replace("BUNDLE 0 1 2", "BUNDLE 0 1 2 3");
        lab.rooms.offer(ada.session, &offer(&both));
        assert_eq!(lab.info(&ada).tracks.len(), 1, "to the others it is one track");
        lab.rooms.offer(bob.session, &offer(&poor));
        let ours = first(old.told());
        let answer = ours.sdp.replace("a=setup:actpass", "a=setup:active").replace("a=sendonly", "a=recvonly");
        lab.rooms
            .answered(old.session, &proto::SessionDescription { r#type: "answer".into(), sdp: answer, id: ours.id, ..Default::default() });
        lab.rooms.offer(eve.session, &offer(&receives));
        let commands = lab.commands();
        let backup =
            commands.iter().find_map(|c| if let Command::Publish { track, .. } = c { Some(*track) } else { None }).expect("published");
        assert_ne!(backup, primary);
        let second = lab
            .rooms
            .participant(old.session)
            .and_then(|p| p.subscriber.as_ref())
            .map(|s| s.transport.session)
            .expect("a second transport");
        let mut now: Vec<_> = sent(&commands);
        now.sort_unstable_by_key(|(session, _)| session.0);
        let mut want = vec![(bob.session, backup), (second, backup)];
        want.extend(replaces.then_some((eve.session, backup)));
        want.sort_unstable_by_key(|(session, _)| session.0);
        assert_eq!(now, want);

        // Who comes later to two peer connections and has no AV1 is offered what is there at once.
        if !replaces {
            let mut late = lab.try_join(claims("late"), true).expect("it joins");
            let ours = first(late.told());
            let answer = ours.sdp.replace("a=setup:actpass", "a=setup:active").replace("a=sendonly", "a=recvonly");
            let answer = answer.replace("m=video 9", "m=video 0");
            lab.rooms.answered(
                late.session,
                &proto::SessionDescription { r#type: "answer".into(), sdp: answer, id: ours.id, ..Default::default() },
            );
            assert!(first(late.told()).sdp.contains("VP8/90000"));
        }
        // The backup alone ends: who had it has the track itself again, and who cannot decode that asks for the backup anew.
        ada.told();
        lab.rooms.offer(ada.session, &offer(&both.replace(&again, &again.replace("a=sendonly", "a=inactive"))));
        assert_eq!(lab.info(&ada).tracks.len(), 1);
        lab.rooms.offer(bob.session, &offer(&poor));
        let is_wanted = |m: &Down| matches!(m, Down::SubscribedQualityUpdate(u) if u.subscribed_codecs[1].qualities[0].enabled);
        assert!(ada.told().iter().any(is_wanted), "it is asked for again");
        lab.rooms.offer(eve.session, &offer(&receives));
        assert!(sent(&lab.commands()).contains(&(eve.session, primary)) == replaces, "whoever had gone over is back");

        // It is muted by force in both codecs, and taken in both.
        lab.rooms.set_muted(ada.session, &sid, true, true);
        assert_eq!(lab.commands().iter().filter(|c| matches!(c, Command::Silence { is_silenced: true, .. })).count(), 2);
        lab.rooms.take_track(ada.session, &sid);
        assert!(lab.info(&ada).tracks.is_empty());
        let taken = lab.commands().iter().filter(|c| matches!(c, Command::Unpublish { .. })).count();
        assert!(taken >= 2, "{taken}");
        assert!(lab.rooms.participant(bob.session).is_some_and(|p| p.subscriptions.is_empty()));
    }
}

#[test]
fn the_audit_log_hears_who_came_from_where_and_what_became_of_it() {
    let mut lab = lab(|_| {});
    let (audit, entries) = Audit::tap(&["consent"]);
    lab.rooms.around.audit = audit;
    let client =
        proto::ClientInfo { sdk: proto::client_info::Sdk::Js as i32, version: "2.23.0".into(), os: "Linux".into(), ..Default::default() };
    let request = proto::JoinRequest { client_info: Some(client), ..Default::default() };
    let mut who = claims("ada");
    who.attributes = HashMap::from([("consent".into(), "recorded 2026-11-26".into()), ("mood".into(), "good".into())]);
    let caller = Caller { host: "localhost".into(), address: "192.0.2.7".parse().ok() };
    let (signal, _queue) = mpsc::channel(SIGNAL_QUEUE);
    let session = lab.rooms.join(Arrival { claims: who, request, caller, is_dual: false }, signal).expect("it joins");
    let entry = |event| entries.try_iter().find(|e| e.event == event).unwrap_or_else(|| panic!("no {event}"));
    let joined = entry("joined");
    assert_eq!((joined.room.as_str(), joined.identity.as_deref(), joined.address), ("room", Some("ada"), "192.0.2.7".parse().ok()));
    assert_eq!(joined.client.as_deref(), Some("JS 2.23.0, Linux"));
    assert_eq!(joined.attributes.keys().collect::<Vec<_>>(), ["consent"], "nothing that was not asked for");
    lab.rooms.report(Report::Path { session, kind: PathKind::RelayTls });
    assert_eq!(entry("path").path, Some("relay/tls"));
    lab.rooms.note_moderated("key", "MutePublishedTrack", "room", "ada");
    assert_eq!(entry("moderated").by.as_deref(), Some("key"));
    assert!(lab.rooms.describe(session, "", "", &HashMap::from([("mood".into(), "bad".into())])));
    assert!(lab.rooms.describe(session, "", "", &HashMap::from([("consent".into(), "withdrawn".into())])));
    let changed: Vec<_> = entries.try_iter().collect();
    assert_eq!(changed.iter().map(|e| (e.event, e.attributes["consent"].as_str())).collect::<Vec<_>>(), [("attributes", "withdrawn")]);
    let way = |bytes| crate::session::quality::Way { bytes, ..Default::default() };
    let sample = |up, down| crate::session::quality::Sample { up: way(up), down: way(down), ..Default::default() };
    lab.rooms.report(Report::Quality { session, sample: sample(1_000, 10) });
    lab.rooms.remove(session, proto::DisconnectReason::ClientInitiated);
    assert_eq!(entries.try_iter().count(), 0, "its transport has not told the rest yet");
    lab.rooms.report(Report::Closed { session, rest: sample(5, 0) });
    let left = entry("left");
    assert_eq!((left.bytes_up, left.bytes_down, left.reason.as_deref()), (Some(1_005), Some(10), Some("client_initiated")));
    let shown: Vec<String> = lab.rooms.overview().events.iter().map(|e| e.text().to_owned()).collect();
    assert_eq!(shown[1..3], ["ada joined", "ada: media over relay/tls"], "{shown:?}");
}
