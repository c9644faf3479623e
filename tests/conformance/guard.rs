//! What strangers and users can do to the relay, by the numbers of the list of attacks (S…): on a shard, whose clock can be
//! turned and whose clients may come from anywhere. Those that need sockets and time of the world are in
//! `tests/abuse.rs` and `tests/relay.rs`.

use super::lab::{ALICE, BOB, Client, Lab, REALM, Signed, Transport, check_form, set, sign};
use super::shard::ShardWire;
use base64::Engine as _;
use postern::crypto::HmacSha1;
use postern::engine::flood::Ration;
use postern::engine::turn::TurnConfig;
use postern::engine::turn_auth::{Realm, Secrets};
use postern::shard::counters::{Counter, Counters};
use postern::wire::stun::{Class, Method, Writer, attr};
use std::collections::HashMap;
use std::net::SocketAddr;

const SECRET: &str = "hush";
/// The shard's clock at its start, seconds since 1970.
const NOW_S: u64 = 1_000_000;

fn lab(transport: Transport, adjust: impl FnOnce(&mut TurnConfig)) -> (Lab, Counters) {
    let wire = ShardWire::with(transport, adjust);
    let counters = wire.counters();
    (Lab::on(wire), counters)
}

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

/// Users of REST credentials besides alice and bob.
fn with_shared(config: &mut TurnConfig) {
    let users = HashMap::from([ALICE, BOB].map(|(name, password)| (name.to_owned(), password.to_owned())));
    config.secrets = Secrets::new(REALM, b"master", &[SECRET.to_owned()], &users);
}

/// Credentials of a name that is good until then, as an app makes them.
fn rest(name: &str) -> (&'static str, &'static str) {
    let password = base64::engine::general_purpose::STANDARD.encode(HmacSha1::new(SECRET.as_bytes()).sign(&[name.as_bytes()]));
    (name.to_owned().leak(), password.leak())
}

fn rationed(config: &mut TurnConfig) {
    config.ration = Ration { per_network: 2, in_all: 1_000 };
}

#[test]
fn s16_a_quota_is_a_persons_whatever_the_name_says_besides() {
    for transport in [Transport::Udp, Transport::Tcp] {
        let (mut lab, _) = lab(transport, |config| {
            with_shared(config);
            config.allocations_per_user_max = 3;
        });
        let mut codes = |names: &[String], from: u8| -> Vec<u16> {
            let of = |(n, name): (usize, &String)| {
                let client = lab.client_at(rest(name), SocketAddr::from(([203, 0, 113, from], 1_000 + n as u16)));
                lab.allocate(&client).code
            };
            names.iter().enumerate().map(of).collect()
        };
        let bobs: Vec<String> = (1..5).map(|n| format!("{}:bob", NOW_S + n)).collect();
        assert_eq!(codes(&bobs, 1), [0, 0, 0, 486]);
        assert_eq!(codes(&bobs[..1], 2), [486], "wherever it comes from");
        // Who is nobody by name counts by address.
        let nameless: Vec<String> = (1..5).map(|n| format!("{}", NOW_S + n)).collect();
        assert_eq!(codes(&nameless, 3), [0, 0, 0, 486]);
        assert_eq!(codes(&nameless[..1], 4), [0]);
        assert_eq!(codes(&["alice".into(), "ALICE".into(), "alice ".into(), "al\u{131}ce".into()], 5), [401; 4], "no REST names, no users");
    }
}

#[test]
fn s23_no_answer_to_a_stranger_is_much_longer_than_its_question() {
    for realm in ["12345678", "turn.example.eu", "a-very-long-name-of-a-realm.meetings.example-hospital-group.eu"] {
        let (mut lab, _) = lab(Transport::Udp, |config| config.secrets = Secrets::new(realm, b"master", &[], &HashMap::new()));
        for (from, mapped) in [("198.51.100.1:1", 12), ("[2001:db8::1]:1", 24)] {
            let stranger = lab.stranger(at(from));
            let binding = lab.bare(&stranger, Method::Binding, &|_| {});
            assert_eq!(binding.bytes.len(), 20 + mapped, "XOR-MAPPED-ADDRESS and nothing else");
            let challenge = lab.bare(&stranger, Method::Allocate, &|w| set(w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])));
            assert_eq!(challenge.bytes.len(), 72 + realm.len().next_multiple_of(4));
            let stale = Client { nonce: b"obMatJos2gAAAAAAAAAAAAAA".to_vec(), realm: realm.into(), ..stranger };
            assert_eq!(lab.ask(&stale, Method::Allocate, &|_| {}).bytes.len(), challenge.bytes.len());
        }
    }
}

#[test]
fn s24_what_asks_for_nothing_gets_nothing_and_no_two_servers_talk_to_each_other() {
    let (mut lab, counters) = lab(Transport::Udp, |_| {});
    // Our own answer, as if it came from us: the end of it.
    let ourselves = lab.stranger(at("127.0.0.1:3478"));
    let answer = lab.bare(&ourselves, Method::Binding, &|_| {});
    for bytes in [answer.bytes.clone(), lab.bare(&ourselves, Method::Allocate, &|_| {}).bytes] {
        lab.send(&ourselves, &bytes);
        assert_eq!(lab.receive(&ourselves), None);
    }
    assert_eq!(counters.get(Counter::DropNotARequest), 2);
    for class in [Class::Indication, Class::Success, Class::Error] {
        for method in [Method::Binding, Method::Allocate, Method::Refresh, Method::CreatePermission, Method::ChannelBind, Method::Data] {
            let mut bytes = Vec::new();
            Writer::new(&mut bytes, method, class, lab.transaction());
            lab.send(&ourselves, &bytes);
            assert_eq!(lab.receive(&ourselves), None, "{class:?} {method:?}");
        }
    }
}

#[test]
fn s25_a_flood_of_questions_is_rationed_by_network_and_whoever_has_shown_itself_is_not() {
    let (mut udp, counters) = lab(Transport::Udp, rationed);
    let (client, _) = udp.allocated();
    let ask = |lab: &mut Lab, from: SocketAddr, count: usize| {
        let stranger = lab.stranger(from);
        let mut answered = 0;
        for _ in 0..count {
            let mut bytes = Vec::new();
            Writer::new(&mut bytes, Method::Binding, Class::Request, lab.transaction());
            lab.send(&stranger, &bytes);
            answered += usize::from(lab.receive(&stranger).is_some());
        }
        answered
    };
    // Ten seconds' worth at once; alice's own challenge was one of them.
    assert_eq!(ask(&mut udp, at("198.51.100.7:1"), 100), 19);
    assert_eq!(counters.get(Counter::DropTurnRationed), 81);
    assert_eq!(ask(&mut udp, at("198.51.100.8:1"), 100), 0, "its neighbour");
    assert_eq!(ask(&mut udp, at("203.0.113.8:1"), 100), 20, "another network");
    assert_eq!((ask(&mut udp, at("[2001:db8::1]:1"), 100), ask(&mut udp, at("[2001:db8::2:1]:1"), 100)), (20, 0), "a /64");
    assert_eq!(udp.refresh(&client, 600).code, 0, "a client");
    udp.later(1);
    assert_eq!(ask(&mut udp, at("198.51.100.9:1"), 100), 2);
    let (mut tcp, _) = lab(Transport::Tcp, rationed);
    assert_eq!(ask(&mut tcp, at("198.51.100.7:1"), 100), 100, "answers over a connection reach nobody else");
}

#[test]
fn s25_binding_over_tcp_without_tls_is_refused_where_the_administrator_says_so() {
    for (transport, is_refused) in [(Transport::Udp, false), (Transport::Tcp, true), (Transport::EdgeTls, false)] {
        let (mut lab, counters) = lab(transport, |config| config.binding_over_tcp = false);
        let client = lab.client(ALICE);
        let mut bytes = Vec::new();
        Writer::new(&mut bytes, Method::Binding, Class::Request, lab.transaction());
        lab.send(&client, &bytes);
        assert_eq!(lab.answer(&client).code, if is_refused { 403 } else { 0 }, "{transport:?}");
        assert_eq!(counters.get(Counter::RefusedBinding), u64::from(is_refused));
        assert_eq!(lab.allocate(&client).code, 0, "{transport:?}");
    }
}

#[test]
fn s26_an_expired_name_is_as_unknown_as_any_other() {
    let (mut lab, _) = lab(Transport::Udp, with_shared);
    let (late, unknown) = (rest(&format!("{}:late", NOW_S - 1)), ("nobody", "x"));
    let nonce = lab.client(ALICE).nonce;
    let mut answers = Vec::new();
    for (user, password) in [late, unknown, (late.0, "wrong"), ("alice", "wrong"), ("9999999:p1.PA_x.0", "x")] {
        let from = lab.client(ALICE);
        let client = Client { user, password, ..from };
        let answer = lab.allocate(&client);
        assert_eq!((answer.code, answer.get(attr::NONCE).map(|n| n.len())), (401, Some(nonce.len())), "{user}");
        answers.push(answer.bytes);
    }
    // All but the transaction and the part of the nonce that is made from the client's address.
    let same = |bytes: &[u8]| [&bytes[..8], &bytes[20..56], &bytes[68..]].concat();
    assert!(answers.windows(2).all(|pair| same(&pair[0]) == same(&pair[1])), "{answers:02x?}");
}

#[test]
fn s27_a_tag_of_another_length_is_no_tag() {
    let (mut lab, counters) = lab(Transport::Udp, |_| {});
    let client = lab.client(ALICE);
    let lengths: [(u16, &[usize]); 2] =
        [(attr::MESSAGE_INTEGRITY, &[0, 4, 16, 19, 21, 24, 32]), (attr::MESSAGE_INTEGRITY_SHA256, &[0, 4, 12, 15, 17, 31, 36])];
    for (kind, lengths) in lengths {
        for len in lengths {
            let mut bytes = Vec::new();
            let mut w = Writer::new(&mut bytes, Method::Allocate, Class::Request, lab.transaction());
            w.attribute(attr::USERNAME, b"alice").attribute(attr::REALM, REALM.as_bytes()).attribute(attr::NONCE, &client.nonce);
            w.attribute(kind, &vec![7; *len]);
            lab.send(&client, &bytes);
            assert_eq!(lab.receive(&client), None, "{kind:#x} of {len} bytes");
        }
    }
    assert_eq!(counters.get(Counter::DropTurnMalformed), 14);
    // The whole of it, or as much of SHA-256 as RFC 8489 §14.6 asks for, and wrong.
    for (kind, len) in [(attr::MESSAGE_INTEGRITY, 20), (attr::MESSAGE_INTEGRITY_SHA256, 16), (attr::MESSAGE_INTEGRITY_SHA256, 32)] {
        let mut bytes = Vec::new();
        let mut w = Writer::new(&mut bytes, Method::Allocate, Class::Request, lab.transaction());
        w.attribute(attr::USERNAME, b"alice").attribute(attr::REALM, REALM.as_bytes()).attribute(attr::NONCE, &client.nonce);
        w.attribute(kind, &vec![7; len]);
        lab.send(&client, &bytes);
        assert_eq!(lab.answer(&client).code, 401);
    }
}

#[test]
fn s28_what_an_expired_name_has_opened_goes_on_or_ends_as_the_administrator_says() {
    for (strict_expiry, code) in [(false, 0), (true, 401)] {
        let (mut lab, _) = lab(Transport::Udp, |config| {
            with_shared(config);
            config.strict_expiry = strict_expiry;
        });
        let carol = lab.client_at(rest(&format!("{}:carol", NOW_S + 100)), at("198.51.100.9:1"));
        let alice = lab.client(ALICE);
        assert_eq!((lab.allocate(&carol).code, lab.allocate(&alice).code), (0, 0));
        let peer = lab.peer("127.0.0.1");
        assert_eq!(lab.bind(&carol, 0x4000, peer.address), 0);
        lab.later(101);
        for client in [&carol, &alice] {
            let want = if client.user == "alice" { 0 } else { code };
            assert_eq!(lab.refresh(client, 600).code, want);
            assert_eq!(lab.permit(client, &[peer.address]), want);
            assert_eq!(lab.bind(client, 0x4000, peer.address), want);
        }
        // A participant's name ends with its stay, whatever it says.
        let minted = Secrets::new(REALM, b"master", &[], &HashMap::new()).mint("PA_x", 0, NOW_S + 150);
        let guest = lab.client_at((minted.0.leak(), minted.1.leak()), at("198.51.100.10:1"));
        assert_eq!(lab.allocate(&guest).code, 0);
        lab.later(100);
        assert_eq!(lab.refresh(&guest, 600).code, 0);
        let again = Client { user: carol.user, password: carol.password, ..lab.client(ALICE) };
        assert_eq!(lab.allocate(&again).code, 401, "nothing new in any case");
        lab.channel(&carol, 0x4000, b"until it ends");
        assert!(lab.peer_receive(peer).is_some());
    }
}

#[test]
fn s30_names_of_any_bytes_are_strangers_names() {
    let (mut lab, counters) = lab(Transport::Tcp, |_| {});
    let long = [508, 509, 763, 1_500].map(|len| vec![b'x'; len]);
    let odd: [&[u8]; 6] = [b"", b"\0", b"alice\r\nadmin", b"%s%n%x", &[0xff, 0xfe, 0x80], b"alice\0"];
    for name in odd.into_iter().chain(long.iter().map(Vec::as_slice)) {
        let client = lab.client(ALICE);
        let mut bytes = Vec::new();
        let mut w = Writer::new(&mut bytes, Method::Allocate, Class::Request, lab.transaction());
        w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]).attribute(attr::USERNAME, name);
        w.attribute(attr::REALM, REALM.as_bytes()).attribute(attr::NONCE, &client.nonce);
        sign(&mut w, &client, Signed::Sha1);
        lab.send(&client, &bytes);
        assert_eq!(lab.answer(&client).code, 401, "{name:?}");
    }
    assert_eq!(counters.get(Counter::AllocationsOpened), 0);
}

#[test]
fn s31_an_allocation_is_its_owners_in_its_owners_realm() {
    let (mut lab, _) = lab(Transport::Udp, |config| {
        let theirs = HashMap::from([("alice".to_owned(), "other".to_owned())]);
        config.secrets = config.secrets.clone().with_realm("other", Realm::new("other", &[], &theirs, false));
    });
    let (client, _) = lab.allocated();
    let peer = lab.peer("127.0.0.1");
    assert_eq!(lab.bind(&client, 0x4000, peer.address), 0);
    let namesake = Client { password: "other", realm: "other".into(), ..client.clone() };
    let bob = Client { user: BOB.0, password: BOB.1, ..client.clone() };
    for other in [namesake, bob] {
        assert_eq!(lab.refresh(&other, 0).code, 441);
        assert_eq!(lab.permit(&other, &[peer.address]), 441);
        assert_eq!(lab.bind(&other, 0x4001, peer.address), 441);
    }
    lab.channel(&client, 0x4000, b"untouched");
    assert_eq!(lab.peer_receive(peer).as_deref(), Some(&b"untouched"[..]));
}

#[test]
fn s32_whoever_tries_passwords_is_slowed_down_and_its_neighbour_gets_in() {
    for transport in [Transport::Udp, Transport::Tcp] {
        let (mut lab, counters) = lab(transport, rationed);
        let guesser = lab.client(ALICE);
        let inside = lab.client(BOB);
        let mut answered = 0;
        for n in 0..1_000 {
            let client = Client { password: format!("guess {n}").leak(), ..guesser.clone() };
            let id = lab.transaction();
            let bytes = lab.request(&client, Method::Allocate, id, Signed::Sha1, &|_| {});
            lab.send(&client, &bytes);
            answered += usize::from(lab.receive(&client).is_some());
        }
        assert_eq!((answered, counters.get(Counter::DropTurnGuessRationed)), (20, 980), "{transport:?}");
        // Behind the same address: one that knows its nonce, and one that has to be challenged first.
        assert_eq!(lab.allocate(&inside).code, 0);
        let newcomer = lab.client(BOB);
        assert_eq!(lab.allocate(&newcomer).code, 0);
        lab.later(1);
        let wrong = Client { password: "once more", ..guesser.clone() };
        assert_eq!(lab.allocate(&wrong).code, 401, "the ration comes back");
        assert_eq!(lab.allocate(&guesser).code, 0, "and who finds its password gets in");
    }
}

/// Every answer of every row is looked at in the same way; these are the longest that there can be.
#[test]
fn s33_and_s34_the_longest_answers_tell_nothing_of_us_and_fit_into_any_path() {
    let realm: &'static str = "r".repeat(127).leak();
    let (mut lab, _) = lab(Transport::Udp, |config| {
        let users = HashMap::from([ALICE, BOB].map(|(name, password)| (name.to_owned(), password.to_owned())));
        config.secrets = Secrets::new(realm, b"master", &[], &users).with_realm("other", Realm::new("other", &[], &users, true));
    });
    let client = lab.client_in(realm, ALICE);
    assert_eq!(lab.allocate(&client).code, 0);
    let wide = |w: &mut Writer<'_>| (0..100).for_each(|n| set(w.attribute(0x7000 + n, b"odd")));
    let mut longest = 0;
    for method in [Method::Binding, Method::Allocate, Method::Refresh, Method::CreatePermission, Method::ChannelBind] {
        for signed in [None, Some(Signed::Sha1), Some(Signed::Sha256)] {
            let id = lab.transaction();
            let bytes = match signed {
                Some(signed) => lab.request(&client, method, id, signed, &wide),
                None => {
                    let mut bytes = Vec::new();
                    wide(&mut Writer::new(&mut bytes, method, Class::Request, id));
                    bytes
                }
            };
            lab.send(&client, &bytes);
            let answer = lab.receive(&client).expect("an answer");
            check_form(&answer);
            longest = longest.max(answer.len());
        }
    }
    assert_eq!(longest, 20 + 8 + 132 + 28 + 12, "the challenge: header, code, realm, nonce, algorithms");
}
