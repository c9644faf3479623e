//! The rows: each names the rules that it covers by their numbers in the reference, and their section. Those that need time to
//! pass say so.

use super::lab::{ALICE, BOB, Client, Fill, Lab, QUOTA, Signed, check_integrity, parse, set, sign};
use postern::wire::stun::{Class, Method, TransactionId, Writer, attr};
use std::net::SocketAddr;

type Check = fn(&mut Lab);

pub const ROWS: &[(&str, Check)] = &[
    ("1,2,3,4,5,6 RFC 8489 6.3: what is no request gets no answer", no_answer),
    ("7,9,10,13 RFC 8489 6.3.1: unknown attributes", unknown_attributes),
    ("8 RFC 8489 6.3.2: an indication with unknown attributes is dropped", unknown_in_indications),
    ("11 RFC 8489 14: the first of two attributes counts", first_of_two),
    ("12 (S9) RFC 8489 14.5: nothing counts behind the integrity", behind_integrity),
    ("14,16 RFC 8489 6.3.1: Binding tells the address that the server sees", binding),
    ("18 RFC 8489 9.2.4: without integrity a challenge", challenge),
    ("19 RFC 8489 9.2.4: integrity without name, realm or nonce", incomplete),
    ("20,21,31,33 RFC 8489 9.2.4: strangers look alike", strangers),
    ("22,23 RFC 8489 9.2.4: a nonce of another, or none", stale_nonce),
    ("24 RFC 8656 5: a nonce lives an hour at most (time)", old_nonce),
    ("25 RFC 8489 9.2.4: answers are signed as requests are", signed_answers),
    ("26,27,28,29 RFC 8489 9.2.4: password algorithms", password_algorithms),
    ("30 RFC 8489 9.2.4: a hashed name where none is offered", hashed_name),
    ("34 RFC 8656 5: no allocation", no_allocation),
    ("35 RFC 8656 5: data without an allocation", data_without_allocation),
    ("36 RFC 8656 5: another user's allocation", another_user),
    ("37,38 RFC 8656 7.2: Allocate again", allocate_again),
    ("39,40 RFC 8656 7.2: REQUESTED-TRANSPORT", requested_transport),
    ("41,74 RFC 8656 7.2: DONT-FRAGMENT is kept", dont_fragment),
    ("42,43 RFC 8656 7.2: reservation tokens that cannot be", bad_tokens),
    ("44,45,46,49 RFC 8656 7.2: address families", families),
    ("47,48,57 RFC 8656 7.2: even ports and pairs", even_ports),
    ("50,61 RFC 8656 7.2: two families at once", dual),
    ("52 RFC 8656 7.2: a user's quota", quota),
    ("54,55 RFC 8656 7.2: what is lent", lent),
    ("56 RFC 8656 7.2: LIFETIME", lifetimes),
    ("58,59 RFC 8656 8.2: Refresh 0 ends it", refresh_zero),
    ("60 RFC 8656 8.2: Refresh of another family", refresh_family),
    ("62,63 RFC 8656 9: a permission lives 300 s, whatever passes (time)", permission_lifetime),
    ("64,76 (S10) RFC 8656 9: a permission is by address alone", permission_by_ip),
    ("65,66,67 RFC 8656 10.2: peers that cannot be", bad_peers),
    ("68 RFC 8656 10.2: one bad peer fails all", all_or_none),
    ("69 RFC 8656 10.2: too many permissions", too_many_permissions),
    ("70,71,72,73 RFC 8656 11.2: Send", send),
    ("75,77 (S10) RFC 8656 11.3: what a peer sends", from_peer),
    ("79,80,81,82 RFC 8656 12.2: channels that cannot be", bad_channels),
    ("83 RFC 8656 12.2: binding again refreshes (time)", rebind),
    ("84 RFC 8656 12.2: family, policy, capacity", channel_refusals),
    ("85,92,93 RFC 8656 12: a channel's end (time)", channel_lifetime),
    ("86,87,88,89 RFC 8656 12.6: ChannelData that is odd", odd_channel_data),
    ("90,91 RFC 8656 12.5: padding towards the client", padding),
    ("95,98 RFC 8656 8.2: nothing is left of an allocation", nothing_is_left),
    ("96 RFC 8656 5: the end of a connection", connection_ends),
    ("97 RFC 8489 6.2.2: frames and segments", segments),
];

fn peer_at(peer: &str) -> SocketAddr {
    peer.parse().expect("an address")
}

const UDP: [u8; 4] = [17, 0, 0, 0];

fn no_answer(lab: &mut Lab) {
    let client = lab.client(ALICE);
    let mut request = Vec::new();
    Writer::new(&mut request, Method::Binding, Class::Request, TransactionId([1; 12])).fingerprint();
    let with = |at: usize, byte: u8| {
        let mut changed = request.clone();
        changed[at] = byte;
        changed
    };
    let length_4 = [&with(3, 4)[..], &[0; 4]].concat();
    let mut rows = vec![
        ("an indication", with(1, 0x11)),
        ("a success response", [&[1, 1][..], &request[2..]].concat()),
        ("an error response", [&[1, 0x11][..], &request[2..]].concat()),
        ("an unknown method", with(1, 0x0e)),
        ("a wrong fingerprint", with(27, request[27] ^ 1)),
        ("another request's fingerprint", with(9, 0)),
        ("an attribute longer than the message", with(23, 200)),
    ];
    if !lab.transport().is_stream() {
        // On a stream these are the end of it.
        rows.extend([
            ("a wrong cookie", with(4, 0)),
            ("first bits 10", with(0, 0x80)),
            ("a length that is not a multiple of four", with(3, 9)),
            ("longer than the datagram", with(3, 12)),
            ("shorter than the datagram", length_4),
            ("a header cut short", request[..19].to_vec()),
            ("nothing", Vec::new()),
        ]);
    }
    for (name, bytes) in rows {
        lab.send(&client, &bytes);
        assert!(lab.is_silent(&client), "{name}");
    }
}

fn unknown_attributes(lab: &mut Lab) {
    let client = lab.client(ALICE);
    // Before authentication nothing is said of them.
    assert_eq!(lab.bare(&client, Method::Allocate, &|w| set(w.attribute(0x7777, &[]))).code, 401);
    let answer = lab.allocate_with(&client, &|w| set(w.attribute(0x7777, &[1]).attribute(0x7778, &[])));
    assert_eq!((answer.code, answer.get(attr::UNKNOWN_ATTRIBUTES)), (420, Some(vec![0x77, 0x77, 0x77, 0x78])));
    let many: Fill<'_> = &|w| (0x7000..0x7020).for_each(|kind| set(w.attribute(kind, &[])));
    assert!(lab.allocate_with(&client, many).get(attr::UNKNOWN_ATTRIBUTES).is_some_and(|list| list.len() <= 16));
    assert_eq!(lab.bare(&client, Method::Binding, &|w| set(w.attribute(0x7777, &[]))).code, 420);
    // Optional, known but out of place, behind the fingerprint.
    let answer =
        lab.allocate_with(&client, &|w| set(w.attribute(0xC057, &[0; 4]).attribute(attr::DATA, b"x").attribute(attr::PRIORITY, &[0; 4])));
    assert_eq!(answer.code, 0);
    let mut bytes = Vec::new();
    let id = lab.transaction();
    Writer::new(&mut bytes, Method::Binding, Class::Request, id).fingerprint().attribute(0x7777, &[]);
    lab.send(&client, &bytes);
    assert!(lab.is_silent(&client), "behind the fingerprint");
}

fn unknown_in_indications(lab: &mut Lab) {
    let (client, _) = lab.allocated();
    let peer = lab.peer("127.0.0.1");
    assert_eq!(lab.permit(&client, &[peer.address]), 0);
    lab.indicate_with(&client, &|w| {
        set(w.attribute(0x7777, &[]).xor_address(attr::XOR_PEER_ADDRESS, peer.address).attribute(attr::DATA, b"x"));
    });
    assert!(lab.peer_got_nothing(&client, peer));
}

fn first_of_two(lab: &mut Lab) {
    let client = lab.client(ALICE);
    let answer = lab.allocate_with(&client, &|w| set(w.u32(attr::LIFETIME, 700).u32(attr::LIFETIME, 800)));
    assert_eq!((answer.code, answer.u32(attr::LIFETIME)), (0, 700));
    // Of permissions every one counts.
    let (one, two) = (lab.peer("127.0.0.1"), lab.peer("127.0.0.2"));
    assert_eq!(lab.permit(&client, &[one.address, two.address]), 0);
    for peer in [one, two] {
        lab.indicate(&client, peer.address, b"x");
        assert_eq!(lab.peer_receive(peer).as_deref(), Some(&b"x"[..]));
    }
}

fn behind_integrity(lab: &mut Lab) {
    let (client, _) = lab.allocated();
    let id = lab.transaction();
    let mut bytes = Vec::new();
    let mut w = Writer::new(&mut bytes, Method::Refresh, Class::Request, id);
    w.u32(attr::LIFETIME, 900).attribute(attr::USERNAME, client.user.as_bytes());
    w.attribute(attr::REALM, client.realm.as_bytes()).attribute(attr::NONCE, &client.nonce);
    sign(&mut w, &client, Signed::Sha1);
    w.u32(attr::LIFETIME, 0).attribute(0x7777, &[]);
    lab.send(&client, &bytes);
    let answer = lab.answer(&client);
    assert_eq!((answer.code, answer.u32(attr::LIFETIME)), (0, 900));
    assert_eq!(lab.refresh(&client, 600).code, 0, "it is still there");
    // S9: a second peer behind the integrity, which may be good or forbidden, is not looked at.
    let (first, second) = (lab.peer("127.0.0.1"), lab.peer("127.0.0.2"));
    for behind in [second.address, "10.0.0.1:1".parse().expect("an address")] {
        let id = lab.transaction();
        let mut bytes = lab.request(&client, Method::CreatePermission, id, Signed::Sha1, &|w| {
            set(w.xor_address(attr::XOR_PEER_ADDRESS, first.address));
        });
        let mut one = Vec::new();
        Writer::new(&mut one, Method::CreatePermission, Class::Request, id).xor_address(attr::XOR_PEER_ADDRESS, behind);
        bytes.extend_from_slice(&one[20..]);
        let len = (bytes.len() - 20) as u16;
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
        lab.send(&client, &bytes);
        assert_eq!(lab.answer(&client).code, 0);
    }
    lab.indicate(&client, second.address, b"not permitted");
    assert_eq!(lab.permit(&client, &[second.address]), 0);
    assert!(lab.peer_got_nothing(&client, second));
}

fn binding(lab: &mut Lab) {
    let client = lab.client(ALICE);
    let answer = lab.bare(&client, Method::Binding, &|_| {});
    assert_eq!((answer.code, answer.address(attr::XOR_MAPPED_ADDRESS)), (0, client.address));
    assert!(answer.bytes.len() <= if client.address.is_ipv4() { 32 } else { 44 }, "nothing else is told");
}

fn challenge(lab: &mut Lab) {
    let client = lab.client(ALICE);
    for method in [Method::Allocate, Method::Refresh, Method::CreatePermission, Method::ChannelBind] {
        let answer = lab.bare(&client, method, &|w| set(w.attribute(attr::REQUESTED_TRANSPORT, &UDP)));
        assert_eq!(answer.code, 401);
        assert!(answer.has(attr::REALM) && answer.has(attr::NONCE) && answer.has(attr::PASSWORD_ALGORITHMS));
        assert!(!answer.has(attr::MESSAGE_INTEGRITY));
        assert!(answer.bytes.len() <= 80, "{} bytes: an amplifier", answer.bytes.len());
        assert!(answer.get(attr::NONCE).is_some_and(|nonce| nonce.starts_with(b"obMatJos2")));
    }
}

fn incomplete(lab: &mut Lab) {
    let client = lab.client(ALICE);
    for missing in [attr::USERNAME, attr::REALM, attr::NONCE] {
        let id = lab.transaction();
        let mut bytes = Vec::new();
        let mut w = Writer::new(&mut bytes, Method::Allocate, Class::Request, id);
        w.attribute(attr::REQUESTED_TRANSPORT, &UDP);
        let parts = [(attr::USERNAME, client.user.as_bytes()), (attr::REALM, client.realm.as_bytes()), (attr::NONCE, &client.nonce)];
        parts.iter().filter(|(kind, _)| *kind != missing).for_each(|(kind, value)| set(w.attribute(*kind, value)));
        sign(&mut w, &client, Signed::Sha1);
        lab.send(&client, &bytes);
        let answer = lab.answer(&client);
        assert_eq!(answer.code, 400, "without {missing:04x}");
        assert!(!answer.has(attr::REALM) && !answer.has(attr::NONCE) && !answer.has(attr::MESSAGE_INTEGRITY));
    }
}

fn strangers(lab: &mut Lab) {
    let good = lab.client(ALICE);
    let mut answers = Vec::new();
    for (user, password, realm) in [
        ("nobody", "a", "realm"),
        ("alice", "wrong", "realm"),
        ("alice", "a", "another"),
        ("1:expired", "x", "realm"),
        ("\0%s\r\n", "a", "realm"),
    ] {
        let client = Client { user, password, realm: realm.into(), ..good.clone() };
        let answer = lab.allocate(&client);
        assert_eq!(answer.code, 401, "{user:?}");
        answers.push(answer.bytes);
    }
    // But for the transaction id, and the nonce in which a second may have passed.
    let rest = |bytes: &[u8]| (bytes[..8].to_vec(), bytes[20..44].to_vec(), bytes.len());
    assert!(answers.windows(2).all(|w| rest(&w[0]) == rest(&w[1])), "{answers:02x?}");
    // Padding is zero.
    let realm_padding = &answers[0][20 + 8 + 4 + 5..20 + 8 + 12];
    assert!(realm_padding.iter().all(|b| *b == 0), "{realm_padding:02x?}");
    assert_eq!(lab.allocate(&good).code, 0, "and whoever is known is let in");
}

fn stale_nonce(lab: &mut Lab) {
    let (client, other) = (lab.client(ALICE), lab.client(ALICE));
    for nonce in [other.nonce.clone(), b"x".to_vec(), Vec::new(), b"obMatJos2gAAAAAAAAAAAAAA".to_vec()] {
        let answer = lab.allocate(&Client { nonce, ..client.clone() });
        assert_eq!(answer.code, 438);
        assert!(answer.has(attr::NONCE) && answer.has(attr::REALM) && !answer.has(attr::MESSAGE_INTEGRITY));
        let fresh = Client { nonce: answer.get(attr::NONCE).expect("a nonce"), ..client.clone() };
        assert_eq!(lab.refresh(&fresh, 0).code, 437, "the new one is good");
    }
}

fn old_nonce(lab: &mut Lab) {
    let client = lab.client(ALICE);
    lab.later(3_590);
    assert_eq!(lab.refresh(&client, 0).code, 437);
    lab.later(11);
    assert_eq!(lab.refresh(&client, 0).code, 438);
}

fn signed_answers(lab: &mut Lab) {
    let client = lab.client(ALICE);
    let success = lab.allocate(&client);
    let refused = lab.ask(&client, Method::ChannelBind, &|_| {});
    assert_eq!((success.code, refused.code), (0, 400));
    for answer in [success, refused] {
        check_integrity(&answer, &client);
        assert!(!answer.has(attr::MESSAGE_INTEGRITY_SHA256));
    }
}

fn password_algorithms(lab: &mut Lab) {
    let client = lab.client(ALICE);
    let offer = lab.bare(&client, Method::Allocate, &|_| {}).get(attr::PASSWORD_ALGORITHMS).expect("an offer");
    assert_eq!(offer, [0, 2, 0, 0, 0, 1, 0, 0]);
    let (md5, sha256): (&[u8], &[u8]) = (&[0, 1, 0, 0], &[0, 2, 0, 0]);
    let rows: &[(&str, Option<&[u8]>, Option<&[u8]>, Signed, u16)] = &[
        ("neither", None, None, Signed::Sha1, 437),
        ("MD5", Some(md5), Some(&offer), Signed::Sha1, 437),
        ("SHA-256", Some(sha256), Some(&offer), Signed::Sha256, 437),
        ("an algorithm alone", Some(sha256), None, Signed::Sha256, 400),
        ("an offer alone", None, Some(&offer), Signed::Sha1, 400),
        ("another offer", Some(sha256), Some(&offer[4..]), Signed::Sha256, 400),
        ("not of the offer", Some(&[0, 9, 0, 0]), Some(&offer), Signed::Sha256, 400),
    ];
    for (name, algorithm, algorithms, signed, want) in rows {
        let id = lab.transaction();
        let fill: Fill<'_> = &|w| {
            algorithm.iter().for_each(|a| set(w.attribute(attr::PASSWORD_ALGORITHM, a)));
            algorithms.iter().for_each(|a| set(w.attribute(attr::PASSWORD_ALGORITHMS, a)));
        };
        let bytes = lab.request(&client, Method::Refresh, id, *signed, fill);
        lab.send(&client, &bytes);
        let answer = lab.answer(&client);
        assert_eq!(answer.code, *want, "{name}");
        let is_signed = *want == 437;
        assert_eq!(answer.has(attr::MESSAGE_INTEGRITY), is_signed && *signed == Signed::Sha1, "{name}");
        assert_eq!(answer.has(attr::MESSAGE_INTEGRITY_SHA256), is_signed && *signed == Signed::Sha256, "{name}");
    }
    // A tag of a length that cannot be.
    for len in [12, 18, 36] {
        let id = lab.transaction();
        let mut bytes = Vec::new();
        Writer::new(&mut bytes, Method::Refresh, Class::Request, id)
            .attribute(attr::USERNAME, b"alice")
            .attribute(attr::REALM, b"realm")
            .attribute(attr::NONCE, &client.nonce)
            .attribute(attr::MESSAGE_INTEGRITY_SHA256, &vec![0; len]);
        lab.send(&client, &bytes);
        assert!(lab.is_silent(&client), "{len}");
    }
}

fn hashed_name(lab: &mut Lab) {
    let client = lab.client(ALICE);
    let id = lab.transaction();
    let mut bytes = Vec::new();
    let mut w = Writer::new(&mut bytes, Method::Allocate, Class::Request, id);
    w.attribute(attr::USERHASH, &postern::crypto::sha256(&[b"alice:realm"])).attribute(attr::REALM, b"realm");
    w.attribute(attr::NONCE, &client.nonce);
    sign(&mut w, &client, Signed::Sha1);
    lab.send(&client, &bytes);
    assert_eq!(lab.answer(&client).code, 400);
}

fn no_allocation(lab: &mut Lab) {
    let client = lab.client(ALICE);
    assert_eq!(lab.refresh(&client, 600).code, 437);
    assert_eq!(lab.permit(&client, &[peer_at("127.0.0.1:9")]), 437);
    assert_eq!(lab.bind(&client, 0x4000, peer_at("127.0.0.1:9")), 437);
}

fn data_without_allocation(lab: &mut Lab) {
    let client = lab.client(ALICE);
    lab.indicate(&client, peer_at("127.0.0.1:9"), b"x");
    lab.channel(&client, 0x4000, b"x");
    assert!(lab.is_silent(&client));
}

fn another_user(lab: &mut Lab) {
    let (client, _) = lab.allocated();
    let (user, password) = BOB;
    let mallory = Client { user, password, ..client.clone() };
    assert_eq!(lab.refresh(&mallory, 0).code, 441);
    assert_eq!(lab.permit(&mallory, &[peer_at("127.0.0.1:9")]), 441);
    assert_eq!(lab.bind(&mallory, 0x4000, peer_at("127.0.0.1:9")), 441);
    assert_eq!(lab.refresh(&Client { user: "nobody", ..client.clone() }, 0).code, 401);
    assert_eq!(lab.refresh(&client, 600).code, 0, "untouched");
}

fn allocate_again(lab: &mut Lab) {
    let client = lab.client(ALICE);
    let id = lab.transaction();
    let bytes = lab.request(&client, Method::Allocate, id, Signed::Sha1, &|w| set(w.attribute(attr::REQUESTED_TRANSPORT, &UDP)));
    lab.send(&client, &bytes);
    let first = lab.answer(&client).bytes;
    lab.send(&client, &bytes);
    assert_eq!(lab.answer(&client).bytes, first, "a retransmission gets the same");
    assert_eq!(lab.allocate(&client).code, 437);
}

fn requested_transport(lab: &mut Lab) {
    let client = lab.client(ALICE);
    let of = |lab: &mut Lab, value: &[u8]| lab.ask(&client, Method::Allocate, &|w| set(w.attribute(attr::REQUESTED_TRANSPORT, value))).code;
    assert_eq!(lab.ask(&client, Method::Allocate, &|_| {}).code, 400);
    assert_eq!(of(lab, &[17]), 400);
    assert_eq!(of(lab, &[6, 0, 0, 0]), 442, "TCP relays are not offered");
    assert_eq!(of(lab, &[0, 0, 0, 0]), 442);
    assert_eq!(of(lab, &UDP), 0);
}

fn dont_fragment(lab: &mut Lab) {
    let client = lab.client(ALICE);
    assert_eq!(lab.allocate_with(&client, &|w| set(w.attribute(attr::DONT_FRAGMENT, &[]))).code, 0);
    let peer = lab.peer("127.0.0.1");
    assert_eq!(lab.permit(&client, &[peer.address]), 0);
    lab.indicate_with(&client, &|w| {
        set(w.xor_address(attr::XOR_PEER_ADDRESS, peer.address).attribute(attr::DONT_FRAGMENT, &[]).attribute(attr::DATA, b"whole"));
    });
    assert_eq!(lab.peer_receive(peer).as_deref(), Some(&b"whole"[..]));
}

fn bad_tokens(lab: &mut Lab) {
    let client = lab.client(ALICE);
    let token = |w: &mut Writer<'_>| set(w.attribute(attr::RESERVATION_TOKEN, &[7; 8]));
    let rows: &[(&str, u16, Fill<'_>)] = &[
        ("and EVEN-PORT", 400, &|w| {
            token(w);
            set(w.attribute(attr::EVEN_PORT, &[0]));
        }),
        ("and a family", 400, &|w| {
            token(w);
            set(w.attribute(attr::REQUESTED_ADDRESS_FAMILY, &[1, 0, 0, 0]));
        }),
        ("and one more family", 400, &|w| {
            token(w);
            set(w.attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]));
        }),
        ("of another length", 400, &|w| set(w.attribute(attr::RESERVATION_TOKEN, &[7; 4]))),
        ("unknown", 508, &|w| token(w)),
    ];
    for (name, want, fill) in rows {
        assert_eq!(lab.allocate_with(&client, fill).code, *want, "{name}");
    }
}

fn families(lab: &mut Lab) {
    let rows: &[(&str, u16, Option<bool>, Fill<'_>)] = &[
        ("none asked", 0, Some(true), &|_| {}),
        ("IPv4", 0, Some(true), &|w| set(w.attribute(attr::REQUESTED_ADDRESS_FAMILY, &[1, 0, 0, 0]))),
        ("IPv6", 0, Some(false), &|w| set(w.attribute(attr::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]))),
        ("7", 440, None, &|w| set(w.attribute(attr::REQUESTED_ADDRESS_FAMILY, &[7, 0, 0, 0]))),
        ("two kinds of asking", 400, None, &|w| {
            set(w.attribute(attr::REQUESTED_ADDRESS_FAMILY, &[1, 0, 0, 0]).attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]));
        }),
        ("IPv4 as additional", 400, None, &|w| set(w.attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[1, 0, 0, 0]))),
    ];
    for (name, want, is_v4, fill) in rows {
        let client = lab.client(ALICE);
        let answer = lab.allocate_with(&client, fill);
        assert_eq!(answer.code, *want, "{name}");
        if let Some(is_v4) = is_v4 {
            assert_eq!(answer.address(attr::XOR_RELAYED_ADDRESS).is_ipv4(), *is_v4, "{name}");
        }
    }
}

fn even_ports(lab: &mut Lab) {
    for _ in 0..4 {
        let client = lab.client(ALICE);
        let answer = lab.allocate_with(&client, &|w| set(w.attribute(attr::EVEN_PORT, &[0])));
        assert_eq!((answer.code, answer.address(attr::XOR_RELAYED_ADDRESS).port() % 2), (0, 0));
    }
    // A pair: whoever brings the token, and is the same user, gets the next port, once.
    for _ in 0..4 {
        let (first, second, thief) = (lab.client(ALICE), lab.client(ALICE), lab.client(BOB));
        let answer = lab.allocate_with(&first, &|w| set(w.attribute(attr::EVEN_PORT, &[0x80])));
        let token = answer.get(attr::RESERVATION_TOKEN).expect("a token");
        let port = answer.address(attr::XOR_RELAYED_ADDRESS).port();
        assert_eq!((port % 2, token.len()), (0, 8));
        let fill: Fill<'_> = &|w| set(w.attribute(attr::RESERVATION_TOKEN, &token));
        assert_eq!(lab.allocate_with(&thief, fill).code, 508);
        let answer = lab.allocate_with(&second, fill);
        assert_eq!((answer.code, answer.address(attr::XOR_RELAYED_ADDRESS).port()), (0, port + 1));
    }
    // Of the family that it was reserved in.
    let (first, second) = (lab.client(ALICE), lab.client(ALICE));
    let answer = lab.allocate_with(&first, &|w| {
        set(w.attribute(attr::EVEN_PORT, &[0x80]).attribute(attr::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]));
    });
    let (token, relayed) = (answer.get(attr::RESERVATION_TOKEN).expect("a token"), answer.address(attr::XOR_RELAYED_ADDRESS));
    let answer = lab.allocate_with(&second, &|w| set(w.attribute(attr::RESERVATION_TOKEN, &token)));
    assert_eq!(answer.address(attr::XOR_RELAYED_ADDRESS), SocketAddr::new(relayed.ip(), relayed.port() + 1));
    let client = lab.client(ALICE);
    for malformed in [&[][..], &[0x80, 0, 0, 0]] {
        assert_eq!(lab.allocate_with(&client, &|w| set(w.attribute(attr::EVEN_PORT, malformed))).code, 400);
    }
    let both: Fill<'_> = &|w| set(w.attribute(attr::EVEN_PORT, &[0x80]).attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]));
    assert_eq!(lab.allocate_with(&client, both).code, 400);
}

fn dual(lab: &mut Lab) {
    let client = lab.client(ALICE);
    let answer = lab.allocate_with(&client, &|w| set(w.attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0])));
    let relayed = answer.addresses(attr::XOR_RELAYED_ADDRESS);
    assert_eq!((answer.code, relayed.len(), relayed[0].is_ipv4(), relayed[1].is_ipv4()), (0, 2, true, false));
    let (v4, v6) = (lab.peer("127.0.0.1"), lab.peer("::1"));
    assert_eq!(lab.permit(&client, &[v4.address, v6.address]), 0);
    for (peer, from) in [(v4, relayed[0]), (v6, relayed[1])] {
        lab.indicate(&client, peer.address, b"x");
        assert_eq!(lab.peer_receive_from(peer), Some((from, b"x".to_vec())));
        lab.peer_send(peer, from, b"back");
        assert_eq!(lab.data(&client), (peer.address, b"back".to_vec()));
    }
    // One family ends, the other stays.
    let of =
        |family: u8| move |w: &mut Writer<'_>| set(w.u32(attr::LIFETIME, 0).attribute(attr::REQUESTED_ADDRESS_FAMILY, &[family, 0, 0, 0]));
    assert_eq!(lab.ask(&client, Method::Refresh, &of(2)).code, 0);
    assert_eq!(lab.permit(&client, &[v6.address]), 443);
    lab.indicate(&client, v4.address, b"y");
    assert_eq!(lab.peer_receive(v4).as_deref(), Some(&b"y"[..]));
    assert_eq!(lab.ask(&client, Method::Refresh, &of(2)).code, 443);
    assert_eq!(lab.ask(&client, Method::Refresh, &of(1)).code, 0);
    assert_eq!(lab.refresh(&client, 600).code, 437);
}

fn quota(lab: &mut Lab) {
    let clients: Vec<Client> = (0..=QUOTA).map(|_| lab.client(BOB)).collect();
    for client in &clients[..QUOTA] {
        assert_eq!(lab.allocate(client).code, 0);
    }
    // On several workers the last of them may not know of the first yet: ask until it is told.
    let mut codes = (0..100).map(|_| {
        let code = lab.allocate(&clients[QUOTA]).code;
        if code == 0 {
            assert_eq!(lab.refresh(&clients[QUOTA], 0).code, 0);
        }
        code
    });
    assert!(codes.any(|code| code == 486));
    for client in &clients[..QUOTA] {
        assert_eq!(lab.refresh(client, 0).code, 0);
    }
    // What is kept back for a user counts as well, although its neighbour is given back.
    let kept_back = (0..=2 * QUOTA).position(|_| {
        let code = lab.allocate_with(&clients[0], &|w| set(w.attribute(attr::EVEN_PORT, &[0x80]))).code;
        assert!(code == 486 || lab.refresh(&clients[0], 0).code == 0);
        code == 486
    });
    assert!(kept_back.is_some());
    assert!((0..100).any(|_| lab.allocate(&clients[QUOTA]).code == 0), "places come back");
    assert_eq!(lab.refresh(&clients[QUOTA], 0).code, 0);
}

fn lent(lab: &mut Lab) {
    let client = lab.client(ALICE);
    let answer = lab.allocate(&client);
    assert_eq!((answer.code, answer.u32(attr::LIFETIME)), (0, 600));
    assert_eq!(answer.address(attr::XOR_MAPPED_ADDRESS), client.address);
    let relayed = answer.address(attr::XOR_RELAYED_ADDRESS);
    assert!(relayed.port() >= 49152 && relayed.ip() == lab.sfu().ip(), "{relayed}");
    let ports: Vec<u16> = (0..8)
        .map(|_| {
            let (_, relayed) = lab.allocated();
            relayed.port()
        })
        .collect();
    assert!(ports.windows(2).any(|w| w[1].abs_diff(w[0]) > 4), "not one after the other: {ports:?}");
}

fn lifetimes(lab: &mut Lab) {
    for (asked, want) in [(0, 600), (10, 600), (700, 700), (3_600, 3_600), (9_999, 3_600)] {
        let client = lab.client(ALICE);
        let answer = lab.allocate_with(&client, &|w| set(w.u32(attr::LIFETIME, asked)));
        assert_eq!((answer.code, answer.u32(attr::LIFETIME)), (0, want), "{asked}");
        if asked > 0 {
            let answer = lab.refresh(&client, asked);
            assert_eq!((answer.code, answer.u32(attr::LIFETIME)), (0, want), "{asked}");
        }
    }
}

fn refresh_zero(lab: &mut Lab) {
    let (client, _) = lab.allocated();
    let answer = lab.refresh(&client, 0);
    assert_eq!((answer.code, answer.u32(attr::LIFETIME)), (0, 0));
    assert_eq!(lab.refresh(&client, 0).code, 437);
}

fn refresh_family(lab: &mut Lab) {
    let (client, _) = lab.allocated();
    let of = |family: u8| move |w: &mut Writer<'_>| set(w.attribute(attr::REQUESTED_ADDRESS_FAMILY, &[family, 0, 0, 0]));
    assert_eq!(lab.ask(&client, Method::Refresh, &of(2)).code, 443);
    assert_eq!(lab.ask(&client, Method::Refresh, &of(1)).code, 0);
}

fn permission_lifetime(lab: &mut Lab) {
    let (client, relayed) = lab.allocated();
    let peer = lab.peer("127.0.0.1");
    assert_eq!(lab.permit(&client, &[peer.address]), 0);
    lab.later(299);
    lab.indicate(&client, peer.address, b"x");
    assert_eq!(lab.peer_receive(peer).as_deref(), Some(&b"x"[..]));
    assert_eq!(lab.refresh(&client, 3_600).code, 0, "a refresh of the allocation is none of the permission");
    lab.later(1);
    lab.indicate(&client, peer.address, b"late");
    lab.peer_send(peer, relayed, b"late");
    assert!(lab.is_silent(&client));
    assert_eq!(lab.permit(&client, &[peer.address]), 0);
    assert!(lab.peer_got_nothing(&client, peer));
}

fn permission_by_ip(lab: &mut Lab) {
    let (client, relayed) = lab.allocated();
    let (one, other) = (lab.peer("127.0.0.1"), lab.peer("127.0.0.1"));
    assert_eq!(lab.permit(&client, &[one.address]), 0);
    lab.indicate(&client, other.address, b"x");
    assert_eq!(lab.peer_receive_from(other), Some((relayed, b"x".to_vec())));
    lab.peer_send(other, relayed, b"back");
    assert_eq!(lab.data(&client), (other.address, b"back".to_vec()));
}

fn bad_peers(lab: &mut Lab) {
    let (client, _) = lab.allocated();
    assert_eq!(lab.permit(&client, &[]), 400);
    assert_eq!(lab.ask(&client, Method::CreatePermission, &|w| set(w.attribute(attr::XOR_PEER_ADDRESS, &[0, 1, 0]))).code, 400);
    assert_eq!(lab.permit(&client, &[peer_at("[::1]:9")]), 443);
    for peer in ["10.0.0.1:9", "169.254.169.254:80", "127.0.9.1:9", "0.0.0.0:9", "255.255.255.255:9", "224.0.0.1:9", "8.8.8.8:53"] {
        assert_eq!(lab.permit(&client, &[peer_at(peer)]), 403, "{peer}");
    }
}

fn all_or_none(lab: &mut Lab) {
    let (client, _) = lab.allocated();
    let good = lab.peer("127.0.0.3");
    for peers in [[good.address, peer_at("10.0.0.1:9")], [peer_at("10.0.0.1:9"), good.address]] {
        assert_eq!(lab.permit(&client, &peers), 403);
        lab.indicate(&client, good.address, b"x");
    }
    assert_eq!(lab.permit(&client, &[good.address]), 0);
    assert!(lab.peer_got_nothing(&client, good), "none was installed");
}

fn too_many_permissions(lab: &mut Lab) {
    let (client, _) = lab.allocated();
    let peers: Vec<SocketAddr> = (1..=64).map(|n| SocketAddr::from(([127, 0, 1, n], 9))).collect();
    assert_eq!(lab.permit(&client, &peers), 0);
    assert_eq!(lab.permit(&client, &[peer_at("127.0.2.1:9")]), 508);
    assert_eq!(lab.permit(&client, &peers), 0, "those that are there are refreshed");
}

fn send(lab: &mut Lab) {
    let (client, relayed) = lab.allocated();
    let peer = lab.peer("127.0.0.1");
    // Without a permission nothing passes, and none comes into being.
    lab.indicate(&client, peer.address, b"early");
    lab.indicate(&client, peer_at("10.0.0.1:9"), b"x");
    lab.peer_send(peer, relayed, b"early");
    assert!(lab.is_silent(&client));
    assert_eq!(lab.permit(&client, &[peer.address]), 0);
    lab.indicate_with(&client, &|w| set(w.attribute(attr::DATA, b"no peer")));
    lab.indicate_with(&client, &|w| set(w.xor_address(attr::XOR_PEER_ADDRESS, peer.address)));
    lab.indicate(&client, peer.address, b"");
    assert_eq!(lab.peer_receive(peer).as_deref(), Some(&b""[..]), "empty is a datagram too");
    assert!(lab.peer_got_nothing(&client, peer));
}

fn from_peer(lab: &mut Lab) {
    let (client, relayed) = lab.allocated();
    let (peer, stranger) = (lab.peer("127.0.0.1"), lab.peer("127.0.0.4"));
    assert_eq!(lab.permit(&client, &[peer.address]), 0);
    lab.peer_send(stranger, relayed, b"nobody asked");
    lab.peer_send(peer, relayed, b"before");
    assert_eq!(lab.data(&client), (peer.address, b"before".to_vec()));
    assert_eq!(lab.bind(&client, 0x4007, peer.address), 0);
    lab.peer_send(peer, relayed, b"behind");
    let data = lab.receive(&client).expect("data");
    assert_eq!((&data[..4], &data[4..10]), (&[0x40, 7, 0, 6][..], &b"behind"[..]));
    assert!(lab.is_silent(&client));
}

fn bad_channels(lab: &mut Lab) {
    let (client, _) = lab.allocated();
    let peer = lab.peer("127.0.0.1").address;
    for number in [0, 0x3fff, 0x5000, 0x7fff, 0xffff] {
        assert_eq!(lab.bind(&client, number, peer), 400, "{number:04x}");
    }
    assert_eq!(lab.ask(&client, Method::ChannelBind, &|w| set(w.u32(attr::CHANNEL_NUMBER, 0x4000_0000))).code, 400);
    assert_eq!(lab.ask(&client, Method::ChannelBind, &|w| set(w.xor_address(attr::XOR_PEER_ADDRESS, peer))).code, 400);
    assert_eq!(lab.bind(&client, 0x4000, peer), 0);
    assert_eq!(lab.bind(&client, 0x4000, SocketAddr::new(peer.ip(), peer.port() ^ 1)), 400, "one number, one peer");
    assert_eq!(lab.bind(&client, 0x4001, peer), 400, "one peer, one number");
    assert_eq!(lab.bind(&client, 0x4fff, SocketAddr::new(peer.ip(), peer.port() ^ 1)), 0);
}

fn rebind(lab: &mut Lab) {
    let (client, _) = lab.allocated();
    let peer = lab.peer("127.0.0.1");
    assert_eq!(lab.refresh(&client, 3_600).code, 0);
    assert_eq!(lab.bind(&client, 0x4000, peer.address), 0);
    for _ in 0..4 {
        lab.later(290);
        assert_eq!(lab.bind(&client, 0x4000, peer.address), 0);
    }
    lab.later(290);
    lab.channel(&client, 0x4000, b"x");
    assert_eq!(lab.peer_receive(peer).as_deref(), Some(&b"x"[..]), "channel and permission");
}

fn channel_refusals(lab: &mut Lab) {
    let (client, _) = lab.allocated();
    assert_eq!(lab.bind(&client, 0x4000, peer_at("[::1]:9")), 443);
    assert_eq!(lab.bind(&client, 0x4000, peer_at("10.0.0.1:9")), 403);
    assert_eq!(lab.bind(&client, 0x4000, lab.listener()), 403, "our own listener");
    for n in 0..16 {
        assert_eq!(lab.bind(&client, 0x4000 + n, SocketAddr::from(([127, 0, 1, 1], 1_000 + n))), 0);
    }
    assert_eq!(lab.bind(&client, 0x4100, peer_at("127.0.1.1:2000")), 508);
}

fn channel_lifetime(lab: &mut Lab) {
    let (client, _) = lab.allocated();
    let (peer, next) = (lab.peer("127.0.0.1"), lab.peer("127.0.0.5"));
    assert_eq!(lab.refresh(&client, 3_600).code, 0);
    assert_eq!(lab.bind(&client, 0x4000, peer.address), 0);
    lab.later(299);
    lab.channel(&client, 0x4000, b"refreshes nothing");
    assert!(lab.peer_receive(peer).is_some());
    lab.later(2);
    lab.channel(&client, 0x4000, b"its permission has lapsed");
    assert_eq!(lab.permit(&client, &[peer.address]), 0);
    assert!(lab.peer_got_nothing(&client, peer));
    lab.channel(&client, 0x4000, b"the channel is there");
    assert_eq!(lab.peer_receive(peer).as_deref(), Some(&b"the channel is there"[..]));
    lab.later(299);
    lab.channel(&client, 0x4000, b"over");
    assert_eq!(lab.permit(&client, &[peer.address]), 0);
    assert!(lab.peer_got_nothing(&client, peer));
    assert_eq!(lab.bind(&client, 0x4000, next.address), 0, "the number is free for another");
}

fn odd_channel_data(lab: &mut Lab) {
    let (client, _) = lab.allocated();
    let peer = lab.peer("127.0.0.1");
    assert_eq!(lab.bind(&client, 0x4000, peer.address), 0);
    lab.channel(&client, 0x4001, b"unbound");
    lab.channel(&client, 0x5000, b"reserved");
    lab.channel(&client, 0x7fff, b"reserved");
    if !lab.transport().is_stream() {
        lab.send(&client, &[0x40, 0, 0, 5, 1, 2]);
        lab.send(&client, &[0x40, 0, 0]);
        lab.send(&client, &[0x40, 0, 0, 2, 7, 8, 0, 0]);
        assert_eq!(lab.peer_receive(peer).as_deref(), Some(&[7, 8][..]), "padding is cut off");
    }
    lab.channel(&client, 0x4000, b"");
    assert_eq!(lab.peer_receive(peer).as_deref(), Some(&b""[..]));
    lab.channel(&client, 0x4000, b"x");
    assert_eq!(lab.peer_receive(peer).as_deref(), Some(&b"x"[..]), "framing is kept");
}

fn padding(lab: &mut Lab) {
    let (client, relayed) = lab.allocated();
    let peer = lab.peer("127.0.0.1");
    assert_eq!(lab.bind(&client, 0x4000, peer.address), 0);
    // On a stream what follows is read right only if each is padded; the length never counts padding.
    for len in [1, 2, 3, 4, 5] {
        lab.peer_send(peer, relayed, &vec![9; len]);
        let data = lab.receive(&client).expect("data");
        assert_eq!((data[3], data.len()), (len as u8, 4 + len));
    }
}

fn nothing_is_left(lab: &mut Lab) {
    let (client, relayed) = lab.allocated();
    let peer = lab.peer("127.0.0.1");
    assert_eq!(lab.bind(&client, 0x4000, peer.address), 0);
    assert_eq!(lab.refresh(&client, 0).code, 0);
    let answer = lab.allocate(&client);
    assert_eq!(answer.code, 0);
    lab.channel(&client, 0x4000, b"x");
    lab.indicate(&client, peer.address, b"x");
    lab.peer_send(peer, relayed, b"x");
    lab.peer_send(peer, answer.address(attr::XOR_RELAYED_ADDRESS), b"x");
    assert!(lab.is_silent(&client));
    assert_eq!(lab.permit(&client, &[peer.address]), 0);
    assert!(lab.peer_got_nothing(&client, peer));
}

fn connection_ends(lab: &mut Lab) {
    if !lab.transport().is_stream() {
        return;
    }
    // Places of a quota come back when connections end.
    let clients: Vec<Client> = (0..QUOTA).map(|_| lab.client(BOB)).collect();
    for client in &clients {
        assert_eq!(lab.allocate(client).code, 0);
    }
    clients.iter().for_each(|client| lab.close(client));
    let after = lab.client(BOB);
    assert!((0..200).any(|_| lab.allocate(&after).code == 0));
    assert_eq!(lab.refresh(&after, 0).code, 0);
}

fn segments(lab: &mut Lab) {
    if !lab.transport().is_stream() {
        return;
    }
    let (client, _) = lab.allocated();
    let peer = lab.peer("127.0.0.1");
    assert_eq!(lab.bind(&client, 0x4000, peer.address), 0);
    let mut all = Vec::new();
    for n in 0..5_u8 {
        all.extend([&[0x40, 0, 0, 5][..], &[n; 5], &[0; 3]].concat());
    }
    // Many in one.
    lab.send(&client, &all);
    (0..5).for_each(|n| assert_eq!(lab.peer_receive(peer), Some(vec![n; 5])));
    // One in many, where the wire can cut.
    if !lab.can_wait() {
        all.chunks(1).for_each(|byte| lab.send(&client, byte));
        (0..5).for_each(|n| assert_eq!(lab.peer_receive(peer), Some(vec![n; 5])));
    }
    let id = lab.transaction();
    let request = lab.request(&client, Method::Refresh, id, Signed::Sha1, &|_| {});
    lab.send(&client, &[&request[..], &request, &all[..12]].concat());
    for _ in 0..2 {
        let answer = lab.receive(&client).map(parse).expect("an answer");
        assert_eq!((answer.code, answer.message.transaction_id.0), (0, id.0));
    }
    assert_eq!(lab.peer_receive(peer), Some(vec![0; 5]));
}
