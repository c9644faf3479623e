//! Tells when this host's addresses change: DHCP, a failover, a temporary IPv6 address. The relay keeps its own host closed, so
//! it has to know (rtnetlink(7)).

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use std::os::fd::{AsRawFd, OwnedFd};

const GROUPS: libc::c_int = libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;

pub struct Changes(OwnedFd);

impl Changes {
    pub fn watch() -> nix::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS as u32))?;
        Ok(Self(fd))
    }

    /// Whether some came since it was asked last.
    pub fn came(&mut self) -> bool {
        let (mut came, mut message) = (false, [0; 4096]);
        loop {
            match recv(self.0.as_raw_fd(), &mut message, MsgFlags::empty()) {
                // Messages that were lost were changes too.
                Ok(_) | Err(Errno::ENOBUFS) => came = true,
                Err(Errno::EINTR) => {}
                Err(_) => return came,
            }
        }
    }
}
