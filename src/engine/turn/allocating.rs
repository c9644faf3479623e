//! Allocate and Refresh (RFC 8656 §§7, 8): what a client is lent, and for how long.

use super::{Asked, Effect, Refusal, Turn};
use crate::base::id::AllocationId;
use crate::base::net::source_of;
use crate::base::time::{Duration, Instant, Now, UnixTime};
use crate::crypto;
use crate::engine::relay_ports::{Holder, RESERVED_FOR, Wish};
use crate::engine::relay_table::{Allocation, Families, Family, Order, Tallies};
use crate::engine::turn_auth::{Authenticated, Signer};
use crate::wire::stun::{Class, Message, Method, Writer, attr};
use crate::wire::turn::TRANSPORT_UDP;
use std::net::IpAddr;

const FAMILY_IPV4: u8 = 1;
const FAMILY_IPV6: u8 = 2;
/// Seconds of one step of a reservation's time.
const STEP_S: u64 = 4;
/// The bit of a token's third byte that says its family.
const TOKEN_IPV6: u8 = 0x80;

impl Turn {
    /// RFC 8656 §7.2, in its order.
    pub(super) fn allocate(&mut self, asked: &Asked<'_>, reply: &mut Vec<u8>, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        let Asked { now, from, request, user } = *asked;
        if let Some(known) = self.table.by_carrier(from.carrier) {
            if known.made_by != request.transaction_id() || *known.username != *user.username() {
                return Err(Refusal::NoAllocation);
            }
            self.allocated(reply, known, request, user.signer());
            return Ok(());
        }
        match request.get(attr::REQUESTED_TRANSPORT) {
            Some([TRANSPORT_UDP, _, _, _]) => {}
            Some([_, _, _, _]) => return Err(Refusal::TransportUnsupported),
            _ => return Err(Refusal::BadRequest),
        }
        let family = |kind: u16| request.get(kind).map(|v| v.first().copied().unwrap_or(0));
        let (requested, additional) = (family(attr::REQUESTED_ADDRESS_FAMILY), additional_family(request));
        let even_port = request.get(attr::EVEN_PORT);
        let wants_pair = even_port.is_some_and(|v| v.first().is_some_and(|b| b & 0x80 != 0));
        let token = request.get(attr::RESERVATION_TOKEN);
        let has_wrong_length = |kind: u16, len: usize| request.get(kind).is_some_and(|value| value.len() != len);
        let lengths =
            [(attr::EVEN_PORT, 1), (attr::LIFETIME, 4), (attr::REQUESTED_ADDRESS_FAMILY, 4), (attr::ADDITIONAL_ADDRESS_FAMILY, 4)];
        if lengths.iter().any(|(kind, len)| has_wrong_length(*kind, *len)) {
            return Err(Refusal::BadRequest);
        }
        if token.is_some_and(|t| t.len() != 8) || token.is_some() && (even_port.is_some() || requested.is_some() || additional.is_some()) {
            return Err(Refusal::BadRequest);
        }
        if requested.is_some() && additional.is_some() {
            return Err(Refusal::BadRequest);
        }
        // A token is for a port of one address, and so of its family.
        let requested = token.map(|token| if token[2] & TOKEN_IPV6 == 0 { FAMILY_IPV4 } else { FAMILY_IPV6 }).or(requested);
        let families = self.families(requested, additional)?;
        if additional.is_some_and(|f| f != FAMILY_IPV6) || (wants_pair && additional.is_some()) {
            return Err(Refusal::BadRequest);
        }
        let tallies = self.tallies(user, from.client.ip());
        self.may_allocate(tallies, from.client.ip())?;
        let port = match token {
            Some(token) => self.redeem(now, token, tallies.user)?,
            None => {
                let wish = match (even_port.is_some(), wants_pair) {
                    (_, true) => Wish::Pair,
                    (true, false) => Wish::Even,
                    (false, false) => Wish::Any,
                };
                // What is kept back counts as what is lent: it is as much out of others' reach.
                let kept_back = if wants_pair { self.ports.reserved_for(now.mono, tallies.user) + 1 } else { 0 };
                if wants_pair && self.table.tally(tallies.user) + kept_back >= self.config.allocations_per_user_max {
                    return Err(Refusal::UserQuotaReached);
                }
                self.lend(now.mono, wish, tallies.user).ok_or(Refusal::NoPort)?
            }
        };
        self.made += 1;
        let id = AllocationId(u64::from(self.worker.0) << 56 | self.made);
        let allocation = Allocation::new(
            now.mono,
            Order {
                id,
                carrier: from.carrier,
                client: from.client,
                port,
                holds_port: self.config.peers.is_open(),
                families,
                username: user.username(),
                realm: (user.realm() != self.config.secrets.realm()).then(|| user.realm().into()),
                key: user.signer().key(),
                tallies,
                made_by: request.transaction_id(),
                token: wants_pair.then(|| self.token(now.wall, port + 1, families.v6, tallies.user)),
                lifetime_s: self.granted_lifetime_s(request),
            },
        );
        self.allocated(reply, &allocation, request, user.signer());
        if self.config.peers.is_open() {
            self.ports.hold(port, Holder::Here(id));
            out.push(Effect::Port { port, is_held: true });
        }
        self.table.count_in(tallies);
        self.table.insert(allocation);
        out.push(Effect::Tally { tallies, is_more: true });
        out.push(Effect::Opened { allocation: id });
        Ok(())
    }

    fn families(&self, requested: Option<u8>, additional: Option<u8>) -> Result<Families, Refusal> {
        let has = |is_v4: bool| self.config.peers.relay_ip(is_v4).is_some();
        let wanted = match requested {
            None | Some(FAMILY_IPV4) => Families { v4: has(true), v6: additional.is_some() && has(false) },
            Some(FAMILY_IPV6) => Families { v4: false, v6: has(false) },
            Some(_) => return Err(Refusal::FamilyUnsupported),
        };
        if wanted.v4 || wanted.v6 { Ok(wanted) } else { Err(Refusal::FamilyUnsupported) }
    }

    fn tallies(&self, user: &Authenticated<'_>, source: IpAddr) -> Tallies {
        let source = match source_of(source) {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let secrets = &self.config.secrets;
        // Who is nobody by name is somebody by address.
        let name = match secrets.quota_name(user) {
            Some(name) => [user.realm().as_bytes(), b"\0", name].concat(),
            None => [user.realm().as_bytes(), b"\0\0", &source[..]].concat(),
        };
        Tallies { user: secrets.tally(b"user", &name), source: secrets.tally(b"source", &source) }
    }

    fn may_allocate(&self, tallies: Tallies, source: IpAddr) -> Result<(), Refusal> {
        let config = &self.config;
        if self.table.tally(tallies.user) >= config.allocations_per_user_max {
            return Err(Refusal::UserQuotaReached);
        }
        let per_address = config.allocations_per_address_max;
        if per_address > 0 && self.table.tally(tallies.source) >= per_address {
            return Err(Refusal::SourceQuotaReached);
        }
        if self.is_draining {
            let other = config.alternates.iter().find(|server| server.is_ipv4() == source.is_ipv4());
            return Err(other.map_or(Refusal::Draining, |server| Refusal::TryAlternate(*server)));
        }
        if self.table.len() >= config.allocations_max { Err(Refusal::CapacityReached) } else { Ok(()) }
    }

    /// A port for a relayed address: a real one while the relay is open, else a name.
    fn lend(&mut self, now: Instant, wish: Wish, user: u64) -> Option<u16> {
        if self.config.peers.is_open() {
            return self.ports.choose(now, wish, user, &mut self.dice);
        }
        match wish {
            // Nothing is kept back that nobody could reach.
            Wish::Pair => None,
            Wish::Even | Wish::Any => Some(self.name()),
        }
    }

    /// Workers count even ports in steps of their number from a random start, so that one client's allocations never share a name
    /// although no worker knows the others' (a port comes back after the whole range).
    fn name(&mut self) -> u16 {
        let (first, last) = (u64::from(*self.config.relay_ports.start()).next_multiple_of(2), u64::from(*self.config.relay_ports.end()));
        let workers = u64::from(self.config.workers.max(1));
        let slots = (last.saturating_sub(first) / 2 + 1).div_euclid(workers).max(1);
        if self.made == 0 {
            self.made = self.dice.below(slots);
        }
        (first + 2 * ((self.made % slots) * workers + u64::from(self.worker.0) % workers)).min(last & !1) as u16
    }

    /// RESERVATION-TOKEN: `port ‖ family(1 bit) ‖ time(7 bits) ‖ tag`, good for this user alone, on every worker.
    fn token(&self, wall: UnixTime, port: u16, is_v6: bool, user: u64) -> [u8; 8] {
        let family = if is_v6 { TOKEN_IPV6 } else { 0 };
        self.token_of(family | step(wall), port, user)
    }

    fn token_of(&self, stamp: u8, port: u16, user: u64) -> [u8; 8] {
        let [hi, lo] = port.to_be_bytes();
        let tag = self.config.secrets.tally(b"token", &[&[hi, lo, stamp][..], &user.to_be_bytes()].concat()).to_be_bytes();
        [hi, lo, stamp, tag[0], tag[1], tag[2], tag[3], tag[4]]
    }

    fn redeem(&mut self, now: Now, token: &[u8], user: u64) -> Result<u16, Refusal> {
        let &[hi, lo, stamp, ..] = token else { return Err(Refusal::BadRequest) };
        let port = u16::from_be_bytes([hi, lo]);
        let age_s = STEP_S * u64::from(step(now.wall).wrapping_sub(stamp) & !TOKEN_IPV6);
        let is_good = crypto::equal(token, &self.token_of(stamp, port, user)) && age_s <= RESERVED_FOR.as_secs();
        if is_good && self.config.peers.is_open() && self.ports.redeem(now.mono, port) { Ok(port) } else { Err(Refusal::NoPort) }
    }

    fn granted_lifetime_s(&self, request: &Message<'_>) -> u32 {
        let (min, max) = (*self.config.lifetime_s.start(), *self.config.lifetime_s.end());
        request.get_u32(attr::LIFETIME).map_or(min, |asked| asked.clamp(min, max))
    }

    fn allocated(&self, reply: &mut Vec<u8>, allocation: &Allocation, request: &Message<'_>, signer: Signer) {
        let mut w = Writer::new(reply, Method::Allocate, Class::Success, request.transaction_id());
        for relayed in Family::BOTH.iter().filter_map(|family| self.relayed_of(allocation, *family)) {
            w.xor_address(attr::XOR_RELAYED_ADDRESS, relayed.0);
        }
        w.u32(attr::LIFETIME, allocation.lifetime_s).xor_address(attr::XOR_MAPPED_ADDRESS, allocation.client.0);
        if let Some(token) = allocation.token {
            w.attribute(attr::RESERVATION_TOKEN, &token);
        }
        if additional_family(request).is_some() {
            let lacking = [(allocation.families.v4, FAMILY_IPV4), (allocation.families.v6, FAMILY_IPV6)];
            for (_, family) in lacking.iter().filter(|(has, _)| !has) {
                w.attribute(attr::ADDRESS_ERROR_CODE, &[*family, 0, 4, 40]);
            }
        }
        signer.sign(&mut w);
    }

    /// RFC 8656 §8.2.
    pub(super) fn refresh(&mut self, asked: &Asked<'_>, reply: &mut Vec<u8>, out: &mut Vec<Effect>) -> Result<(), Refusal> {
        let (now, request, user) = (asked.now.mono, asked.request, asked.user);
        let lifetime_s = match request.get_u32(attr::LIFETIME) {
            Some(0) => 0,
            _ => self.granted_lifetime_s(request),
        };
        let allocation = self.own(asked)?;
        let family = match request.get(attr::REQUESTED_ADDRESS_FAMILY).map(|v| v.first()) {
            None => None,
            Some(Some(&FAMILY_IPV4)) => Some(Family::V4),
            Some(Some(&FAMILY_IPV6)) => Some(Family::V6),
            Some(_) => return Err(Refusal::FamilyMismatch),
        };
        if family.is_some_and(|family| !allocation.families.has(family)) {
            return Err(Refusal::FamilyMismatch);
        }
        let (id, is_dual) = (allocation.id, allocation.families.v4 && allocation.families.v6);
        match (lifetime_s, family) {
            (0, Some(family)) if is_dual => {
                allocation.drop_family(family);
                out.push(Effect::CloseSocket { allocation: id, family });
            }
            (0, _) => {
                if let Some(allocation) = self.table.remove(id) {
                    self.end(allocation, out);
                }
            }
            _ => self.table.prolong(id, now + Duration::from_secs(lifetime_s.into())),
        }
        let mut w = Writer::new(reply, Method::Refresh, Class::Success, request.transaction_id());
        w.u32(attr::LIFETIME, lifetime_s);
        user.signer().sign(&mut w);
        Ok(())
    }
}

/// Now, in seven bits.
fn step(wall: UnixTime) -> u8 {
    (wall.as_secs() / STEP_S) as u8 & !TOKEN_IPV6
}

fn additional_family(request: &Message<'_>) -> Option<u8> {
    let value = request.get(attr::ADDITIONAL_ADDRESS_FAMILY).or_else(|| request.get(attr::ADDITIONAL_ADDRESS_FAMILY_DRAFT))?;
    Some(value.first().copied().unwrap_or(0))
}
