//! The wire of the real binary: sockets on loopback.

use super::common::{Server, patient};
use super::lab::{Lab, Transport, Wire};
use postern::wire::framing::Framing;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, PoisonError};

enum Link {
    Udp(UdpSocket),
    Tcp(TcpStream),
    Tls(Box<rustls::StreamOwned<rustls::ClientConnection, TcpStream>>),
    Closed,
}

pub struct RealWire {
    transport: Transport,
    turn: SocketAddr,
    edge: SocketAddr,
    media: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    /// Each with what was read and is no whole message yet.
    clients: Vec<(Link, Vec<u8>)>,
    peers: Vec<UdpSocket>,
}

/// Clients of a server over one transport.
pub fn lab(server: &Server, transport: Transport) -> Lab {
    Lab::on(RealWire::new(server, transport))
}

impl RealWire {
    pub fn new(server: &Server, transport: Transport) -> Self {
        let (turn, edge, media) = (server.turn, server.edge, server.media);
        Self { transport, turn, edge, media, tls: server.tls_config(&[]), clients: Vec::new(), peers: Vec::new() }
    }

    fn connect(&self, to: SocketAddr) -> TcpStream {
        let tcp = TcpStream::connect(to).expect("a connection");
        tcp.set_read_timeout(Some(patient())).expect("a timeout");
        tcp.set_nodelay(true).expect("an option");
        tcp
    }
}

/// Sockets whose port may have an allocation still: no later client is to come from there.
static KEPT: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());

impl Drop for RealWire {
    fn drop(&mut self) {
        let links = self.clients.drain(..).filter_map(|(link, _)| if let Link::Udp(socket) = link { Some(socket) } else { None });
        KEPT.lock().unwrap_or_else(PoisonError::into_inner).extend(links);
    }
}

impl Wire for RealWire {
    fn transport(&self) -> Transport {
        self.transport
    }

    fn join(&mut self) -> (usize, SocketAddr) {
        let (link, address) = match self.transport {
            Transport::Udp => {
                let socket = UdpSocket::bind((self.turn.ip(), 0)).expect("bound");
                socket.connect(self.turn).expect("connected");
                socket.set_read_timeout(Some(patient())).expect("a timeout");
                let address = socket.local_addr().expect("bound");
                (Link::Udp(socket), address)
            }
            Transport::Tcp | Transport::EdgeTcp => {
                let tcp = self.connect(if self.transport == Transport::Tcp { self.turn } else { self.edge });
                let address = tcp.local_addr().expect("connected");
                (Link::Tcp(tcp), address)
            }
            Transport::EdgeTls => {
                let tcp = self.connect(self.edge);
                let address = tcp.local_addr().expect("connected");
                let name = "localhost".try_into().expect("a name");
                let session = rustls::ClientConnection::new(Arc::clone(&self.tls), name).expect("a session");
                (Link::Tls(Box::new(rustls::StreamOwned::new(session, tcp))), address)
            }
        };
        self.clients.push((link, Vec::new()));
        (self.clients.len() - 1, address)
    }

    fn join_from(&mut self, from: SocketAddr) -> (usize, SocketAddr) {
        assert_eq!(self.transport, Transport::Tcp, "of use where a port is free although it is taken");
        let socket = socket2::Socket::new(socket2::Domain::for_address(from), socket2::Type::STREAM, None).expect("a socket");
        socket.bind(&from.into()).expect("bound");
        socket.connect(&self.turn.into()).expect("connected");
        let tcp = TcpStream::from(socket);
        tcp.set_read_timeout(Some(patient())).expect("a timeout");
        self.clients.push((Link::Tcp(tcp), Vec::new()));
        (self.clients.len() - 1, from)
    }

    fn close(&mut self, client: usize) {
        self.clients[client].0 = Link::Closed;
    }

    fn send(&mut self, client: usize, bytes: &[u8]) {
        match &mut self.clients[client].0 {
            Link::Udp(socket) => assert_eq!(socket.send(bytes).expect("sent"), bytes.len()),
            Link::Tcp(tcp) => tcp.write_all(bytes).expect("written"),
            Link::Tls(tls) => tls.write_all(bytes).expect("written"),
            Link::Closed => panic!("it is closed"),
        }
    }

    fn receive(&mut self, client: usize) -> Option<Vec<u8>> {
        let (link, inbound) = &mut self.clients[client];
        let mut bytes = [0; 4096];
        if let Link::Udp(socket) = link {
            let len = socket.recv(&mut bytes).ok()?;
            return Some(bytes[..len].to_vec());
        }
        loop {
            if let Some(frame) = Framing::Turn.next(inbound).expect("the server's framing") {
                let message = inbound[frame.start..frame.end].to_vec();
                inbound.drain(..frame.consumed);
                return Some(message);
            }
            let len = match link {
                Link::Tcp(tcp) => tcp.read(&mut bytes),
                Link::Tls(tls) => tls.read(&mut bytes),
                Link::Udp(_) | Link::Closed => return None,
            };
            match len {
                Ok(len) if len > 0 => inbound.extend_from_slice(&bytes[..len]),
                _ => return None,
            }
        }
    }

    fn peer(&mut self, ip: IpAddr) -> (usize, SocketAddr) {
        let socket = UdpSocket::bind((ip, 0)).expect("bound");
        socket.set_read_timeout(Some(patient())).expect("a timeout");
        let address = socket.local_addr().expect("bound");
        self.peers.push(socket);
        (self.peers.len() - 1, address)
    }

    fn peer_send(&mut self, peer: usize, to: SocketAddr, bytes: &[u8]) {
        self.peers[peer].send_to(bytes, to).expect("sent");
    }

    fn peer_receive(&mut self, peer: usize) -> Option<(SocketAddr, Vec<u8>)> {
        let mut bytes = [0; 4096];
        let (len, from) = self.peers[peer].recv_from(&mut bytes).ok()?;
        Some((from, bytes[..len].to_vec()))
    }

    fn later(&mut self, _: u64) -> bool {
        false
    }

    fn can_wait(&self) -> bool {
        false
    }

    fn sfu(&self) -> SocketAddr {
        self.media
    }

    fn listener(&self) -> SocketAddr {
        self.turn
    }
}
