//! UDP sockets in batches: recvmmsg in, sendmmsg out, with a source address and a segment size for every message. What
//! comes in runs (UDP_GRO) is cut apart here.
//!
//! The only `unsafe` of the data path. Everything that the kernel reads or writes lives in [`Batch`], whose arrays are
//! set up anew before each call, so that no length left by an earlier message is taken for the next one's.

use crate::base::buf::{PAYLOAD_MAX, PacketBuf, Pool};
use libc::{c_void, cmsghdr, iovec, mmsghdr, msghdr, sockaddr_storage, socklen_t};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::task::{Context, Poll};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Messages of one system call.
pub const BATCH: usize = 64;
/// Room for the control messages of one packet: IPV6_PKTINFO (40) and UDP_SEGMENT or UDP_GRO (24).
const CONTROL: usize = 96;
/// Room for what a run has beyond its first packet's buffer: together the longest that UDP has.
const RUN_REST: usize = 65_536 - PAYLOAD_MAX;
/// Asked for; the kernel gives what net.core.rmem_max and wmem_max allow.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;
const RELAY_BUFFER: usize = 1024 * 1024;

/// Errors that a socket tells of an earlier datagram, instead of taking the next.
const OF_EARLIER: [i32; 4] = [libc::ECONNREFUSED, libc::EHOSTUNREACH, libc::ENETUNREACH, libc::EPROTO];

/// A datagram that did not arrive, and the network's words about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undelivered {
    pub to: SocketAddr,
    /// Type and code of the ICMP or ICMPv6 error, and the next hop's MTU.
    pub kind: u8,
    pub code: u8,
    pub mtu: u32,
}

/// One packet that came in.
pub struct Received {
    pub remote: SocketAddr,
    /// The address it was sent to.
    pub local: IpAddr,
    pub buf: PacketBuf,
}

/// One message that goes out: one datagram, or equal-sized ones that the kernel cuts apart.
#[derive(Clone, Copy)]
pub struct Transmit<'a> {
    pub remote: SocketAddr,
    /// The address it must come from.
    pub local: IpAddr,
    pub bytes: &'a [u8],
    /// Size of each datagram but the last (UDP_SEGMENT); `None` sends `bytes` as one.
    pub segment: Option<u16>,
}

impl<'a> Transmit<'a> {
    fn pieces(&self) -> impl Iterator<Item = &'a [u8]> {
        self.bytes.chunks(self.segment.map_or(self.bytes.len(), usize::from).max(1))
    }

    pub fn datagrams(&self) -> usize {
        self.pieces().count().max(1)
    }
}

#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

/// What the kernel works on. Boxed once per worker.
pub struct Batch {
    messages: Box<[mmsghdr; BATCH]>,
    parts: Box<[[iovec; 2]; BATCH]>,
    names: Box<[sockaddr_storage; BATCH]>,
    controls: Box<[Control; BATCH]>,
    buffers: Vec<PacketBuf>,
    /// For the rest of runs; pages that no run has touched cost nothing.
    rests: Vec<u8>,
    /// Messages that came in, of one datagram or a run of them.
    pub received: u64,
    /// Datagrams that no buffer holds, and those that nobody can be answered for.
    pub too_long: u64,
    pub unanswerable: u64,
}

// SAFETY: the raw pointers inside point into the boxes beside them and are only used during a call on `&mut self`.
unsafe impl Send for Batch {}

impl Batch {
    pub fn new(pool: &mut Pool) -> Self {
        // SAFETY: all-zero is a valid value of these C structs.
        let (messages, parts, names) = unsafe { (mem::zeroed(), mem::zeroed(), mem::zeroed()) };
        Self {
            messages: Box::new(messages),
            parts: Box::new(parts),
            names: Box::new(names),
            controls: Box::new([Control([0; CONTROL]); BATCH]),
            buffers: (0..BATCH).map(|_| pool.take()).collect(),
            rests: vec![0; BATCH * RUN_REST],
            received: 0,
            too_long: 0,
            unanswerable: 0,
        }
    }
}

pub struct UdpSocket {
    fd: AsyncFd<Socket>,
    /// The address it is bound to. Only where that is all of the host's, packets say which of them they are for and from.
    bound: IpAddr,
    /// Our addresses whose device has refused to segment: from them every datagram is a message of its own.
    unsegmented: Vec<IpAddr>,
}

/// A bound, non-blocking socket with all options set, which shares its address with those of other workers; not yet tied to a
/// runtime.
pub fn bind(address: SocketAddr) -> io::Result<Socket> {
    open(address, true)
}

/// The same at a port that nobody has. A socket that may share its port is given one of another's now and then.
pub fn bind_anywhere(ip: IpAddr) -> io::Result<Socket> {
    open(SocketAddr::new(ip, 0), false)
}

/// A relay's: at a port of its own, and told what the network could not deliver.
pub fn bind_relay(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    let _ = socket.set_recv_buffer_size(RELAY_BUFFER);
    let fd = socket.as_raw_fd();
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1)?;
    } else {
        set_option(fd, libc::IPPROTO_IP, libc::IP_RECVERR, 1)?;
    }
    // Errors make it readable, or nobody would look.
    set_option(fd, libc::SOL_SOCKET, libc::SO_SELECT_ERR_QUEUE, 1)?;
    let _ = set_option(fd, libc::SOL_UDP, libc::UDP_GRO, 1);
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

fn open(address: SocketAddr, shares_port: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(shares_port)?;
    socket.set_nonblocking(true)?;
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => set_option(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?,
        IpAddr::V6(ip) if ip.is_unspecified() => set_option(socket.as_raw_fd(), libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?,
        IpAddr::V4(_) | IpAddr::V6(_) => {}
    }
    // Best effort: without it every datagram is a message of its own.
    let _ = set_option(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_GRO, 1);
    socket.bind(&SockAddr::from(address))?;
    Ok(socket)
}

fn set_option(fd: RawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: `value` outlives the call and its size is given.
    let status = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), mem::size_of::<i32>() as socklen_t) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn address_of(socket: &Socket) -> io::Result<SocketAddr> {
    Ok(socket.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?)
}

impl UdpSocket {
    /// Ties a socket to the runtime of this thread.
    pub fn register(socket: Socket) -> io::Result<Self> {
        let bound = address_of(&socket)?.ip();
        // SAFETY: the socket owns its descriptor and stays inside the AsyncFd until that is dropped.
        let fd = unsafe { AsyncFd::register(socket)? };
        Ok(Self { fd, bound, unsegmented: Vec::new() })
    }

    /// The same of one that is told what could not be delivered: that is urgent, as epoll(7) has it.
    pub fn register_relay(socket: Socket) -> io::Result<Self> {
        let bound = address_of(&socket)?.ip();
        // SAFETY: as above.
        let fd = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE | Interest::PRIORITY)? };
        Ok(Self { fd, bound, unsegmented: Vec::new() })
    }

    /// The port it is bound to.
    pub fn port(&self) -> io::Result<u16> {
        Ok(address_of(self.fd.get_ref())?.port())
    }

    /// Whether what is longer than the path takes is refused instead of cut (RFC 791); best effort, as the network's own.
    pub fn dont_fragment(&self, is_on: bool) {
        let socket = self.fd.get_ref();
        let (level, name) =
            if self.bound.is_ipv6() { (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER) } else { (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER) };
        let _ = set_option(socket.as_raw_fd(), level, name, if is_on { libc::IP_PMTUDISC_DO } else { libc::IP_PMTUDISC_WANT });
    }

    /// What the network could not deliver, as it tells a socket that asked to be told (IP_RECVERR).
    pub fn undelivered(&self, out: &mut Vec<Undelivered>) {
        while let Some(undelivered) = read_error(self.fd.get_ref().as_raw_fd()) {
            out.extend(undelivered);
        }
    }

    /// One batch of packets to `out`. `Ready(true)` when more may wait, `Ready(false)` after an error of an earlier send;
    /// `Pending` registers for the next one.
    pub fn poll_recv(&self, cx: &mut Context<'_>, batch: &mut Batch, pool: &mut Pool, out: &mut Vec<Received>) -> Poll<bool> {
        let mut guard = match self.fd.poll_read_ready(cx) {
            Poll::Ready(Ok(guard)) => guard,
            Poll::Ready(Err(_)) => return Poll::Ready(false),
            Poll::Pending => return Poll::Pending,
        };
        match receive(self.fd.get_ref().as_raw_fd(), self.bound, batch, pool, out) {
            Ok(n) if n == BATCH => Poll::Ready(true),
            // A short batch has emptied the socket: no second call to hear that.
            Ok(_) => {
                guard.clear_ready();
                Poll::Ready(true)
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                guard.clear_ready();
                Poll::Ready(true)
            }
            // An ICMP error of an earlier send; the socket lives on.
            Err(_) => Poll::Ready(false),
        }
    }

    /// Sends all messages in order; how many datagrams the kernel refused. A full queue is loss, as on any network.
    pub fn send(&mut self, batch: &mut Batch, messages: &[Transmit<'_>]) -> usize {
        let (mut refused, mut at, mut is_second) = (0, 0, false);
        while at < messages.len() {
            let message = &messages[at];
            if message.segment.is_some() && self.unsegmented.contains(&message.local) {
                refused += self.send_apart(batch, message);
                at += 1;
                continue;
            }
            let together = |m: &Transmit<'_>| m.segment.is_none() || !self.unsegmented.contains(&m.local);
            let count = messages[at..].iter().take(BATCH).take_while(|m| together(m)).count();
            match transmit(self.fd.get_ref().as_raw_fd(), self.bound, batch, &messages[at..at + count]) {
                Ok(sent) => (at, is_second) = (at + sent.max(1), false),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // An earlier send's, told now; this one has not been tried.
                Err(e) if !is_second && e.raw_os_error().is_some_and(|e| OF_EARLIER.contains(&e)) => is_second = true,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    refused += messages[at..].iter().map(Transmit::datagrams).sum::<usize>();
                    at = messages.len();
                }
                // The device cannot segment: remembered.
                Err(e) if message.segment.is_some() && e.raw_os_error() == Some(libc::EIO) => self.unsegmented.push(message.local),
                // Not to this length, on this client's path.
                Err(e) if message.segment.is_some() && matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EMSGSIZE)) => {
                    refused += self.send_apart(batch, message);
                    at += 1;
                }
                Err(_) => {
                    refused += message.datagrams();
                    at += 1;
                }
            }
        }
        refused
    }

    /// Each datagram of a run as a message of its own.
    fn send_apart(&mut self, batch: &mut Batch, run: &Transmit<'_>) -> usize {
        let apart: Vec<Transmit<'_>> = run.pieces().map(|bytes| Transmit { bytes, segment: None, ..*run }).collect();
        self.send(batch, &apart)
    }
}

fn receive(fd: RawFd, bound: IpAddr, batch: &mut Batch, pool: &mut Pool, out: &mut Vec<Received>) -> io::Result<usize> {
    for i in 0..BATCH {
        let (room, rest) = (batch.buffers[i].spare(), &mut batch.rests[i * RUN_REST..(i + 1) * RUN_REST]);
        batch.parts[i] = [
            iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() },
            iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() },
        ];
        batch.messages[i].msg_hdr = header(&mut batch.names[i], &mut batch.parts[i], &mut batch.controls[i], CONTROL);
        batch.messages[i].msg_hdr.msg_iovlen = 2;
        batch.messages[i].msg_len = 0;
    }
    // SAFETY: every pointer in `messages` points into arrays of `batch` that live through the call, with their true sizes.
    let n = unsafe { libc::recvmmsg(fd, batch.messages.as_mut_ptr(), BATCH as u32, libc::MSG_DONTWAIT, std::ptr::null_mut()) };
    if n < 0 {
        return Err(io::Error::last_os_error());
    }
    let n = n as usize;
    batch.received += n as u64;
    for i in 0..n {
        let message = &batch.messages[i];
        let Some(remote) = read_name(&batch.names[i]).filter(|remote| remote.port() != 0) else {
            batch.unanswerable += 1;
            continue;
        };
        if message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            batch.too_long += 1;
            continue;
        }
        let (local, segment) = read_control(&message.msg_hdr);
        let local = local.unwrap_or(bound);
        let len = message.msg_len as usize;
        let segment = segment.unwrap_or(len).min(len);
        if segment > PAYLOAD_MAX {
            batch.too_long += len.div_ceil(segment) as u64;
            continue;
        }
        let mut buf = mem::replace(&mut batch.buffers[i], pool.take());
        buf.set_len(len.min(PAYLOAD_MAX));
        if segment == len {
            out.push(Received { remote, local, buf });
            continue;
        }
        let (first, rest) = (out.len(), &batch.rests[i * RUN_REST..]);
        for start in (segment..len).step_by(segment) {
            let end = (start + segment).min(len);
            out.push(Received { remote, local, buf: cut(&buf, rest, start..end, pool) });
        }
        buf.set_len(segment);
        out.insert(first, Received { remote, local, buf });
    }
    Ok(n)
}

/// A datagram of a run, which lies in `head` as far as that goes, and goes on in `rest`.
fn cut(head: &[u8], rest: &[u8], range: Range<usize>, pool: &mut Pool) -> PacketBuf {
    let mut buf = pool.take();
    let in_head = &head[range.start.min(head.len())..range.end.min(head.len())];
    let in_rest = &rest[range.start.max(head.len()) - head.len()..range.end.max(head.len()) - head.len()];
    let room = buf.spare();
    room[..in_head.len()].copy_from_slice(in_head);
    room[in_head.len()..in_head.len() + in_rest.len()].copy_from_slice(in_rest);
    buf.set_len(in_head.len() + in_rest.len());
    buf
}

/// One message of the error queue; `Some(None)` for one that is no ICMP error. The packet itself is not asked for.
fn read_error(fd: RawFd) -> Option<Option<Undelivered>> {
    let mut control = Control([0; CONTROL]);
    // SAFETY: all-zero is a valid value of these C structs.
    let (mut name, mut parts) = unsafe { (mem::zeroed::<sockaddr_storage>(), mem::zeroed::<[iovec; 2]>()) };
    let mut hdr = header(&mut name, &mut parts, &mut control, CONTROL);
    hdr.msg_iovlen = 0;
    // SAFETY: `hdr` points to `name` and `control`, which outlive the call, with their true sizes.
    let n = unsafe { libc::recvmsg(fd, &mut hdr, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
    if n < 0 {
        return None;
    }
    let to = read_name(&name);
    let mut found = None;
    // SAFETY: the kernel filled `msg_control` up to `msg_controllen`; the CMSG macros stay inside it.
    unsafe {
        let mut c: *const cmsghdr = libc::CMSG_FIRSTHDR(&hdr);
        while !c.is_null() {
            if matches!(((*c).cmsg_level, (*c).cmsg_type), (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR))
            {
                let error: libc::sock_extended_err = std::ptr::read_unaligned(libc::CMSG_DATA(c).cast());
                if matches!(error.ee_origin, libc::SO_EE_ORIGIN_ICMP | libc::SO_EE_ORIGIN_ICMP6) {
                    found = to.map(|to| Undelivered { to, kind: error.ee_type, code: error.ee_code, mtu: error.ee_info });
                }
            }
            c = libc::CMSG_NXTHDR(&hdr, c);
        }
    }
    Some(found)
}

fn transmit(fd: RawFd, bound: IpAddr, batch: &mut Batch, messages: &[Transmit<'_>]) -> io::Result<usize> {
    for (i, message) in messages.iter().enumerate() {
        let name_len = write_name(&mut batch.names[i], message.remote);
        // The kernel only reads through this pointer.
        batch.parts[i][0] = iovec { iov_base: message.bytes.as_ptr().cast_mut().cast(), iov_len: message.bytes.len() };
        let mut hdr = header(&mut batch.names[i], &mut batch.parts[i], &mut batch.controls[i], CONTROL);
        hdr.msg_namelen = name_len;
        write_control(&mut hdr, message, bound);
        batch.messages[i].msg_hdr = hdr;
    }
    // SAFETY: as in `receive`; `bytes` of every message outlives the call by its lifetime.
    let n = unsafe { libc::sendmmsg(fd, batch.messages.as_mut_ptr(), messages.len() as u32, libc::MSG_DONTWAIT) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

/// Of a message in one part; the second is for whoever raises the count.
fn header(name: &mut sockaddr_storage, parts: &mut [iovec; 2], control: &mut Control, control_len: usize) -> msghdr {
    // SAFETY: all-zero is a valid msghdr; padding fields differ between C libraries.
    let mut hdr: msghdr = unsafe { mem::zeroed() };
    hdr.msg_name = (name as *mut sockaddr_storage).cast::<c_void>();
    hdr.msg_namelen = mem::size_of::<sockaddr_storage>() as socklen_t;
    hdr.msg_iov = parts.as_mut_ptr();
    hdr.msg_iovlen = 1;
    hdr.msg_control = control.0.as_mut_ptr().cast();
    hdr.msg_controllen = control_len as _;
    hdr
}

fn read_name(name: &sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(name.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the storage holds a sockaddr_in, which is smaller than it.
            let v4: &libc::sockaddr_in = unsafe { &*(name as *const sockaddr_storage).cast() };
            Some(SocketAddr::from((Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)), u16::from_be(v4.sin_port))))
        }
        libc::AF_INET6 => {
            // SAFETY: as above, for sockaddr_in6.
            let v6: &libc::sockaddr_in6 = unsafe { &*(name as *const sockaddr_storage).cast() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddr::V6(std::net::SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), 0, v6.sin6_scope_id)))
        }
        _ => None,
    }
}

fn write_name(name: &mut sockaddr_storage, addr: SocketAddr) -> socklen_t {
    let addr = SockAddr::from(addr);
    // SAFETY: a SockAddr is a sockaddr_storage with its length.
    *name = unsafe { *addr.as_ptr().cast::<sockaddr_storage>() };
    addr.len()
}

/// From the control messages of what came in: the address it was sent to; of a run, the length of each datagram but the last.
fn read_control(hdr: &msghdr) -> (Option<IpAddr>, Option<usize>) {
    let (mut local, mut segment) = (None, None);
    // SAFETY: the kernel filled `msg_control` up to `msg_controllen`; the CMSG macros stay inside it.
    unsafe {
        let mut c: *const cmsghdr = libc::CMSG_FIRSTHDR(hdr);
        while !c.is_null() {
            match ((*c).cmsg_level, (*c).cmsg_type) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    let info: libc::in_pktinfo = std::ptr::read_unaligned(libc::CMSG_DATA(c).cast());
                    local = Some(IpAddr::V4(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr))));
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    let info: libc::in6_pktinfo = std::ptr::read_unaligned(libc::CMSG_DATA(c).cast());
                    local = Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)));
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    let len: i32 = std::ptr::read_unaligned(libc::CMSG_DATA(c).cast());
                    segment = usize::try_from(len).ok().filter(|len| *len > 0);
                }
                _ => {}
            }
            c = libc::CMSG_NXTHDR(hdr, c);
        }
    }
    (local, segment)
}

/// Source address, where the socket's does not say it, and segment size of an outgoing message.
fn write_control(hdr: &mut msghdr, message: &Transmit<'_>, bound: IpAddr) {
    let mut used = 0;
    // SAFETY: `msg_control` has CONTROL bytes, enough for both messages (asserted below), and is aligned to 8.
    unsafe {
        let base: *mut u8 = hdr.msg_control.cast();
        let mut put = |level: i32, kind: i32, data: &[u8]| {
            let space = libc::CMSG_SPACE(data.len() as u32) as usize;
            assert!(used + space <= CONTROL);
            let c: *mut cmsghdr = base.add(used).cast();
            (*c).cmsg_level = level;
            (*c).cmsg_type = kind;
            (*c).cmsg_len = libc::CMSG_LEN(data.len() as u32) as _;
            std::ptr::copy_nonoverlapping(data.as_ptr(), libc::CMSG_DATA(c), data.len());
            used += space;
        };
        match message.local {
            ip if ip == bound || ip.is_unspecified() => {}
            IpAddr::V4(ip) => {
                let mut info = [0u8; 12];
                info[4..8].copy_from_slice(&ip.octets());
                put(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            IpAddr::V6(ip) => {
                let mut info = [0u8; 20];
                info[..16].copy_from_slice(&ip.octets());
                put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
        }
        if let Some(segment) = message.segment {
            put(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
    }
    hdr.msg_controllen = used as _;
    if used == 0 {
        hdr.msg_control = std::ptr::null_mut();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn collect(socket: &UdpSocket, want: usize) -> Vec<Received> {
        let mut pool = Pool::new(4);
        let mut batch = Batch::new(&mut pool);
        let mut out = Vec::new();
        std::future::poll_fn(|cx| {
            while out.len() < want {
                match socket.poll_recv(cx, &mut batch, &mut pool, &mut out) {
                    Poll::Ready(_) => {}
                    Poll::Pending => return Poll::Pending,
                }
            }
            Poll::Ready(())
        })
        .await;
        out
    }

    #[tokio::test]
    async fn packets_leave_from_the_address_they_were_sent_to() {
        for (at, ip) in [("0.0.0.0:0", "127.0.0.9"), ("[::]:0", "::1"), ("127.0.0.9:0", "127.0.0.9"), ("[::1]:0", "::1")] {
            let mut server = UdpSocket::register(bind(at.parse().expect("a literal")).expect("bound")).expect("registered");
            let ip: IpAddr = ip.parse().expect("a literal");
            let client = tokio::net::UdpSocket::bind(SocketAddr::new(ip, 0)).await.expect("bound");
            client.send_to(b"ping", SocketAddr::new(ip, server.port().expect("bound"))).await.expect("sent");
            let got = collect(&server, 1).await;
            assert_eq!((got[0].local, got[0].remote, &got[0].buf[..]), (ip, client.local_addr().expect("bound"), &b"ping"[..]));
            let reply = Transmit { remote: got[0].remote, local: ip, bytes: b"pong", segment: None };
            assert_eq!(server.send(&mut Batch::new(&mut Pool::new(0)), &[reply]), 0);
            let mut bytes = [0; 8];
            let (len, from) = client.recv_from(&mut bytes).await.expect("received");
            assert_eq!((&bytes[..len], from), (&b"pong"[..], SocketAddr::new(ip, server.port().expect("bound"))));
        }
    }

    #[tokio::test]
    async fn a_segmented_message_arrives_as_several_and_batches_mix_both() {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut server = UdpSocket::register(bind(SocketAddr::new(ip, 0)).expect("bound")).expect("registered");
        let client = UdpSocket::register(bind(SocketAddr::new(ip, 0)).expect("bound")).expect("registered");
        let remote = SocketAddr::new(ip, client.port().expect("bound"));
        let bytes: Vec<u8> = (0..250).collect();
        let segmented = Transmit { remote, local: ip, bytes: &bytes, segment: Some(100) };
        let whole = Transmit { remote, local: ip, bytes: b"whole", segment: None };
        assert_eq!(server.send(&mut Batch::new(&mut Pool::new(0)), &[whole, segmented, whole]), 0);
        let got = collect(&client, 5).await;
        let lens: Vec<usize> = got.iter().map(|r| r.buf.len()).collect();
        assert_eq!(lens, [5, 100, 100, 50, 5]);
    }

    #[tokio::test]
    async fn a_run_that_comes_in_as_one_message_is_cut_apart() {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut sender = UdpSocket::register(bind(SocketAddr::new(ip, 0)).expect("bound")).expect("registered");
        let receiver = UdpSocket::register(bind(SocketAddr::new(ip, 0)).expect("bound")).expect("registered");
        let remote = SocketAddr::new(ip, receiver.port().expect("bound"));
        // Pieces that end before, on and behind the end of the first buffer, and one that is a buffer.
        for (segment, len) in [(1_000usize, 10_500usize), (1_024, 4_096), (1_200, 60_000), (PAYLOAD_MAX, 5_000), (700, 701)] {
            let bytes: Vec<u8> = (0..len).map(|i| (i / 7) as u8).collect();
            let run = Transmit { remote, local: ip, bytes: &bytes, segment: Some(segment as u16) };
            assert_eq!(sender.send(&mut Batch::new(&mut Pool::new(0)), &[run]), 0);
            let (mut pool, mut out) = (Pool::new(4), Vec::new());
            let mut batch = Batch::new(&mut pool);
            let want = len.div_ceil(segment);
            std::future::poll_fn(|cx| {
                while out.len() < want && receiver.poll_recv(cx, &mut batch, &mut pool, &mut out).is_ready() {}
                if out.len() < want { Poll::Pending } else { Poll::Ready(()) }
            })
            .await;
            let lens: Vec<usize> = out.iter().map(|r| r.buf.len()).collect();
            assert!(lens[..want - 1].iter().all(|l| *l == segment), "{lens:?}");
            assert_eq!(out.iter().flat_map(|r| r.buf.iter().copied()).collect::<Vec<u8>>(), bytes);
            assert_eq!(batch.received, 1, "loopback keeps a run of {segment} together");
        }
    }

    #[tokio::test]
    async fn a_run_that_the_kernel_refuses_leaves_as_datagrams() {
        let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let mut server = UdpSocket::register(bind(SocketAddr::new(ip, 0)).expect("bound")).expect("registered");
        // The kernel answers EINVAL when checksums are off, as it does when a segment is longer than the path takes.
        set_option(server.fd.get_ref().as_raw_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).expect("a socket option");
        let client = UdpSocket::register(bind(SocketAddr::new(ip, 0)).expect("bound")).expect("registered");
        let bytes: Vec<u8> = (0..250).collect();
        let run = Transmit { remote: SocketAddr::new(ip, client.port().expect("bound")), local: ip, bytes: &bytes, segment: Some(100) };
        assert_eq!(server.send(&mut Batch::new(&mut Pool::new(0)), &[run, run]), 0);
        server.unsegmented.push(ip);
        assert_eq!(server.send(&mut Batch::new(&mut Pool::new(0)), &[run, run]), 0);
        let got = collect(&client, 12).await;
        assert!(got.chunks(3).all(|run| run.iter().map(|r| r.buf.len()).eq([100, 100, 50])));
    }
}
