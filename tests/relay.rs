//! The relay as its users and its attackers meet it: the real binary on loopback.
#![allow(clippy::disallowed_methods, reason = "tests at the rim look at the clock")]

mod common;
#[allow(dead_code, reason = "each file of tests uses its part")]
#[path = "conformance/lab.rs"]
mod lab;
#[path = "conformance/real.rs"]
mod real;

use common::{OPEN, Server, connect_from, patient, within};
use lab::{ALICE, BOB, Client, Fill, Lab, Transport, parse, set, strangers_allocates};
use postern::wire::framing::Framing;
use postern::wire::stun::{Class, Method, TransactionId, Writer, attr};
use real::lab;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Asks until the answer is another than success: what one worker was told, or did, reaches the others a moment later.
fn refused(lab: &mut Lab, client: &Client) -> lab::Answer {
    for _ in 0..1_000 {
        let answer = lab.allocate(client);
        if answer.code != 0 {
            return answer;
        }
        assert_eq!(lab.refresh(client, 0).code, 0);
    }
    panic!("allocations are still granted");
}

#[test]
fn s38_while_it_drains_others_are_sent_on_and_what_is_there_lives() {
    for (alternates, code) in [("alternate_servers = [\"127.0.0.1:9999\", \"[::1]:9999\"]\n", 300), ("", 508)] {
        let mut server = Server::run(2, &format!("{OPEN}{alternates}"));
        let mut lab = lab(&server, Transport::Udp);
        let (client, _) = lab.allocated();
        let (late, peer) = (lab.client(BOB), lab.peer("127.0.0.1"));
        assert_eq!(lab.bind(&client, 0x4000, peer.address), 0);
        server.command(&["drain", "--within", "600"]);
        let answer = refused(&mut lab, &late);
        assert_eq!(answer.code, code);
        if code == 300 {
            // Family 1, port 9999, 127.0.0.1 (RFC 8489 §14.15).
            assert_eq!(answer.get(attr::ALTERNATE_SERVER), Some(vec![0, 1, 0x27, 0x0f, 127, 0, 0, 1]));
        }
        lab.channel(&client, 0x4000, b"goes on");
        assert_eq!(lab.peer_receive(peer).as_deref(), Some(&b"goes on"[..]));
        assert_eq!(lab.refresh(&client, 600).code, 0);
        assert_eq!(lab.refresh(&client, 0).code, 0);
        within(patient(), "it ends with its last allocation", || server.has_ended());
    }
}

#[test]
fn row_78_rfc_8656_11_5_what_the_network_refuses_is_told() {
    let server = Server::open(2);
    for (transport, ip) in [(Transport::Udp, "127.0.0.1"), (Transport::Tcp, "127.0.0.1"), (Transport::Udp, "::1")] {
        let mut lab = lab(&server, transport);
        let client = lab.client(ALICE);
        assert_eq!(lab.allocate_with(&client, &|w| set(w.attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]))).code, 0);
        let [port] = common::free_ports();
        let nobody = SocketAddr::new(ip.parse().expect("an address"), port);
        assert_eq!(lab.bind(&client, 0x4000, nobody), 0);
        lab.channel(&client, 0x4000, b"anybody?");
        let answer = lab.answer(&client);
        assert_eq!((answer.address(attr::XOR_PEER_ADDRESS), answer.has(attr::DATA)), (nobody, false));
        // Port unreachable: ICMP 3/3, ICMPv6 1/4.
        let (kind, code) = if ip == "::1" { (1, 4) } else { (3, 3) };
        assert_eq!(answer.get(attr::ICMP).expect("it is told")[2..4], [kind, code]);
        // What is sent right behind the error is not lost to it.
        let peer = lab.peer(ip);
        lab.channel(&client, 0x4000, b"anybody?");
        lab.indicate(&client, peer.address, b"somebody");
        assert_eq!(lab.peer_receive(peer).as_deref(), Some(&b"somebody"[..]));
    }
}

#[test]
fn row_99_rfc_8656_3_one_address_over_two_transports_is_two_clients() {
    let server = Server::open(2);
    let (mut udp, mut tcp) = (lab(&server, Transport::Udp), lab(&server, Transport::Tcp));
    let client = udp.client(ALICE);
    let twin = tcp.client_at(BOB, client.address);
    assert_eq!(client.address, twin.address);
    let (one, two) = (udp.allocate(&client), tcp.allocate(&twin));
    assert_eq!((one.code, two.code), (0, 0));
    assert_ne!(one.address(attr::XOR_RELAYED_ADDRESS), two.address(attr::XOR_RELAYED_ADDRESS));
    assert_eq!(tcp.refresh(&twin, 0).code, 0);
    assert_eq!(udp.refresh(&client, 600).code, 0);
}

#[test]
fn s11_allocations_reach_each_other_when_both_permit_it_and_no_further() {
    let server = Server::open(2);
    let mut udp = lab(&server, Transport::Udp);
    let mut tcp = lab(&server, Transport::Tcp);
    for _ in 0..8 {
        // Whatever workers they are on.
        let (a, at_a) = udp.allocated();
        let (b, at_b) = tcp.allocated();
        assert_eq!(udp.bind(&a, 0x4000, at_b), 0);
        udp.channel(&a, 0x4000, b"unasked");
        assert_eq!(tcp.permit(&b, &[at_a]), 0);
        // Where the other is, is told from worker to worker.
        udp.channel(&a, 0x4000, b"hello");
        let first = tcp.data(&b);
        assert_eq!(first.0, at_a);
        if first.1 == b"unasked" {
            assert_eq!(tcp.data(&b), (at_a, b"hello".to_vec()));
        }
        assert_eq!(tcp.bind(&b, 0x4fff, at_a), 0);
        tcp.channel(&b, 0x4fff, b"hello back");
        let back = udp.receive(&a).expect("data");
        assert_eq!((&back[..4], &back[4..14]), (&[0x40, 0, 0, 10][..], &b"hello back"[..]));
        // To itself, once.
        assert_eq!(udp.permit(&a, &[at_a]), 0);
        udp.indicate(&a, at_a, b"mirror");
        assert_eq!(udp.data(&a), (at_a, b"mirror".to_vec()));
        assert!(udp.is_silent(&a) && tcp.is_silent(&b));
        assert_eq!((udp.refresh(&a, 0).code, tcp.refresh(&b, 0).code), (0, 0));
    }
    assert!(server.metric("postern_relay_packets_total{way=\"between_allocations\"}") >= 24);
}

fn mapped(stream: &mut (impl Read + Write)) -> Option<SocketAddr> {
    let mut bytes = Vec::new();
    Writer::new(&mut bytes, Method::Binding, Class::Request, TransactionId([3; 12]));
    stream.write_all(&bytes).ok()?;
    let mut inbound = Vec::new();
    loop {
        let mut some = [0; 512];
        let len = stream.read(&mut some).ok().filter(|len| *len > 0)?;
        inbound.extend_from_slice(&some[..len]);
        if Framing::Turn.next(&inbound).expect("the server's framing").is_some() {
            return Some(parse(inbound).address(attr::XOR_MAPPED_ADDRESS));
        }
    }
}

#[test]
fn s39_a_proxy_that_is_trusted_names_the_client_and_nobody_else_may() {
    let server = Server::open(2);
    let client: SocketAddr = "198.51.100.7:4660".parse().expect("an address");
    let v1 = b"PROXY TCP4 198.51.100.7 127.0.0.1 4660 443\r\n".to_vec();
    let v2 = [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &[198, 51, 100, 7, 127, 0, 0, 1, 0x12, 0x34, 1, 0xbb]].concat();
    for port in [server.turn, server.edge] {
        for header in [&v1, &v2] {
            let mut tcp = connect_from("127.0.0.7", port);
            tcp.write_all(header).expect("written");
            assert_eq!(mapped(&mut tcp), Some(client));
            // In front of TLS.
            let mut tcp = connect_from("127.0.0.7", port);
            tcp.write_all(header).expect("written");
            let session =
                rustls::ClientConnection::new(server.tls_config(&[]), "localhost".try_into().expect("a name")).expect("a session");
            assert_eq!(mapped(&mut rustls::StreamOwned::new(session, tcp)), Some(client));
            // From anybody else it is the end.
            let mut tcp = connect_from("127.0.0.8", port);
            tcp.write_all(header).expect("written");
            assert_eq!(mapped(&mut tcp), None);
        }
        let mut tcp = connect_from("127.0.0.7", port);
        let own = tcp.local_addr().expect("connected");
        assert_eq!(mapped(&mut tcp), Some(own), "a proxy may speak for itself");
        let mut tcp = connect_from("127.0.0.7", port);
        tcp.write_all(b"PROXY TCP4 nonsense\r\n").expect("written");
        assert_eq!(mapped(&mut tcp), None);
    }
    // HTTP comes through proxies too.
    let mut tcp = connect_from("127.0.0.7", server.edge);
    tcp.write_all(&v2).expect("written");
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("written");
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 "), "{answer}");
    assert_eq!(server.metric("postern_connection_refusals_total{reason=\"proxy_header\"}"), 6);
}

#[test]
fn a_realm_is_that_of_the_name_that_tls_asks_for() {
    let realms = "realms = { localhost = { shared_secrets = [\"other\"], users = { carol = \"c\" } } }\n";
    let server = Server::run(1, &format!("{OPEN}{realms}hidden_usernames = true\n"));
    let mut tls = lab(&server, Transport::EdgeTls);
    let carol = tls.client_in("localhost", ("carol", "c"));
    assert_eq!(tls.allocate(&carol).code, 0);
    let mut udp = lab(&server, Transport::Udp);
    let alice = udp.client(ALICE);
    assert_eq!(udp.allocate(&Client { realm: "localhost".into(), ..alice.clone() }).code, 401);
    assert_eq!(udp.allocate(&alice).code, 0);
}

#[test]
fn s29_a_reload_changes_who_may_come_and_drops_nobody() {
    let server = Server::run(2, OPEN);
    let mut lab = lab(&server, Transport::Udp);
    let (client, _) = lab.allocated();
    let peer = lab.peer("127.0.0.1");
    assert_eq!(lab.bind(&client, 0x4000, peer.address), 0);
    let file = server.state.join("postern.toml");
    let text = std::fs::read_to_string(&file).expect("the config");
    let text = text
        .replace("alice = \"a\"", "carol = \"c\"")
        .replace("peers = [\"127.0.0.0/8\"", "denied_peers = [\"127.0.0.6/32\"]\npeers = [\"127.0.0.0/8\"");
    std::fs::write(&file, text).expect("written");
    let said = server.command(&["reload"]);
    assert!(said.contains("turn.users") && said.contains("turn.denied_peers"), "{said}");
    let carol = lab.client(("carol", "c"));
    let again = lab.client(ALICE);
    // Workers take it over a moment later.
    within(patient(), "carol is known", || lab.allocate(&carol).code == 0);
    assert_eq!(refused(&mut lab, &again).code, 401);
    within(patient(), "a peer is denied", || lab.permit(&client, &["127.0.0.6:9".parse().expect("an address")]) == 403);
    lab.channel(&client, 0x4000, b"still");
    assert_eq!(lab.peer_receive(peer).as_deref(), Some(&b"still"[..]));
    assert_eq!(lab.refresh(&client, 600).code, 0, "what was lent to alice is hers");
}

#[test]
fn s12_to_s15_a_flood_and_a_hundred_thousand_allocations_leave_nothing_behind() {
    let server = Server::run(2, &format!("{OPEN}allocations_per_user = 100\n"));
    let mut lab = lab(&server, Transport::Udp);
    let clients: Vec<Client> = (0..50).map(|_| lab.client(ALICE)).collect();
    let [bare, forged] = strangers_allocates();
    let comes: Fill<'_> = &|w| set(w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]));
    let goes: Fill<'_> = &|w| set(w.u32(attr::LIFETIME, 0));
    let mut cycles = |n: usize| {
        for _ in 0..n {
            for (method, fill) in [(Method::Allocate, comes), (Method::Refresh, goes)] {
                for client in &clients {
                    let id = lab.transaction();
                    let bytes = lab.request(client, method, id, lab::Signed::Sha1, fill);
                    lab.send(client, &bytes);
                }
                for client in &clients {
                    let answer = lab.receive(client).expect("an answer");
                    assert_eq!(answer[0], 1, "success: {answer:02x?}");
                }
            }
        }
        for bytes in [&bare, &forged] {
            for _ in 0..n {
                clients.iter().for_each(|client| lab.send(client, bytes));
                clients.iter().for_each(|client| assert!(lab.receive(client).is_some_and(|answer| answer.len() <= 80)));
            }
        }
    };
    cycles(200);
    let before = server.resident();
    cycles(2_000);
    let grown = server.resident().saturating_sub(before);
    assert!(grown < 1 << 20, "it has grown by {grown} bytes");
    let count = |event: &str| server.metric(&format!("postern_turn_allocations_total{{event=\"{event}\"}}"));
    assert_eq!((count("opened"), count("closed")), (110_000, 110_000));
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("a process").count();
    assert!(descriptors < 100, "{descriptors} descriptors");
}

/// Every way to write an IPv4 address as one of IPv6.
fn forms(v4: Ipv4Addr) -> Vec<IpAddr> {
    let o = v4.octets();
    let (high, low) = (u16::from_be_bytes([o[0], o[1]]), u16::from_be_bytes([o[2], o[3]]));
    let v6 = |s: [u16; 8]| IpAddr::V6(Ipv6Addr::from(s));
    vec![
        v6([0, 0, 0, 0, 0, 0xffff, high, low]),
        v6([0, 0, 0, 0, 0, 0, high, low]),
        v6([0x64, 0xff9b, 0, 0, 0, 0, high, low]),
        v6([0x64, 0xff9b, 1, 0, 0, 0, high, low]),
        v6([0x2002, high, low, 0, 0, 0, 0, 1]),
        v6([0x2001, 0, high, low, 0, 0, 0, 1]),
        v6([0x2001, 0, 0x808, 0x808, 0, 0, !high, !low]),
        v6([0xfe80, 0, 0, 0, 0, 0x5efe, high, low]),
    ]
}

#[test]
fn s1_to_s7_a_closed_relay_reaches_the_sfu_and_nothing_else() {
    let server = Server::run(2, "");
    let mut lab = lab(&server, Transport::Udp);
    let client = lab.client(ALICE);
    assert_eq!(lab.allocate_with(&client, &|w| set(w.attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]))).code, 0);
    let listeners: Vec<IpAddr> = ["10.0.0.1", "127.0.0.2", "169.254.169.254", "100.100.100.200", "168.63.129.16", "0.0.0.0", "8.8.8.8"]
        .map(|ip| ip.parse().expect("an address"))
        .into();
    let v6 = ["fd00:ec2::254", "fe80::1", "ff02::1", "::", "2001:db8::1"].map(|ip| ip.parse().expect("an address"));
    let of_v4 = listeners.iter().filter_map(|ip| if let IpAddr::V4(v4) = ip { Some(forms(*v4)) } else { None }).flatten();
    let mut all: Vec<IpAddr> = listeners.iter().copied().chain(v6).chain(of_v4).collect();
    all.extend(forms(Ipv4Addr::LOCALHOST));
    // ::0.0.0.1 is the SFU's own ::1, and no form of an address.
    all.retain(|ip| *ip != IpAddr::V6(Ipv6Addr::LOCALHOST));
    for ip in all {
        if let IpAddr::V6(v6) = ip {
            assert_eq!(lab.permit_v6(&client, v6), 403, "{v6}");
        }
        let peer = SocketAddr::new(ip, server.media.port());
        if peer.ip().to_canonical() == server.media.ip() {
            continue;
        }
        assert_eq!(lab.permit(&client, &[peer]), 403, "{peer}");
        assert_eq!(lab.bind(&client, 0x4000, peer), 403, "{peer}");
        lab.indicate(&client, peer, b"x");
    }
    // The SFU's address at other ports: its admin listener, its relay, a service of the host.
    let service = lab.peer("127.0.0.1");
    assert_eq!(lab.permit(&client, &[server.media]), 0);
    let before = server.drops("turn_peer_not_sfu");
    for port in [server.admin.port(), server.turn.port(), server.edge.port() ^ 1, service.address.port()] {
        let peer = SocketAddr::new(server.media.ip(), port);
        assert_eq!(lab.bind(&client, 0x4001, peer), 403, "{peer}");
        lab.indicate(&client, peer, b"x");
    }
    assert!(lab.is_silent(&client));
    assert_eq!(server.drops("turn_peer_not_sfu") - before, 4);
    assert_eq!(lab.bind(&client, 0x4002, server.media), 0, "the SFU itself");
    assert_eq!(server.metric("postern_relay_packets_total{way=\"to_peer\"}"), 0);
}

#[test]
fn s17_quotas_of_an_address_and_of_bandwidth_are_kept() {
    let limits = "[limits]\nallocations_per_address = 3\nrelay_bytes_per_second_per_allocation = 100000\n";
    let server = Server::run(1, &format!("{OPEN}{limits}"));
    let mut lab = lab(&server, Transport::Udp);
    let clients: Vec<Client> = [ALICE, ALICE, BOB, BOB].map(|user| lab.client(user)).into();
    let codes: Vec<u16> = clients.iter().map(|client| lab.allocate(client).code).collect();
    assert_eq!(codes, [0, 0, 0, 486]);
    assert_eq!(server.metric("postern_turn_refusals_total{reason=\"486_address_quota_reached\"}"), 1);
    let peer = lab.peer("127.0.0.1");
    assert_eq!(lab.bind(&clients[0], 0x4000, peer.address), 0);
    (0..200).for_each(|_| lab.channel(&clients[0], 0x4000, &[7; 1_000]));
    assert!(lab.is_silent(&clients[0]));
    // Half a second's worth at once, and what came to it while they were sent.
    let dropped = server.drops("turn_over_bandwidth");
    assert!((100..=150).contains(&dropped), "{dropped} of 200");
    // Another's allocation is not held up.
    assert_eq!(lab.bind(&clients[2], 0x4000, peer.address), 0);
    (0..200 - dropped).for_each(|_| assert!(lab.peer_receive(peer).is_some()));
    lab.channel(&clients[2], 0x4000, b"free");
    assert_eq!(lab.peer_receive(peer).as_deref(), Some(&b"free"[..]));
}
