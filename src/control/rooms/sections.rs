//! Sections of a client's offers that can carry tracks to it, and requests for more of them (`media_sections_requirement`).
//!
//! Requests and offers cross: what was asked for and is in no offer yet is on its way, and is not asked for again.

use crate::wire::sdp::SECTIONS_USED_MAX;

/// Rounds in which a client brought nothing of what it was asked for, before it is left alone until it does.
const VAIN_MAX: u8 = 3;
/// Requests for sections that can carry AV1 before a track takes any.
const DESCRIBED_ASKED_MAX: u8 = 2;

/// Sections of a client's offers that it receives in.
#[derive(Default)]
pub(in crate::control) struct Sections {
    /// Asked for, and in no offer yet: audio, video.
    pub(in crate::control) asked: (u32, u32),
    /// An offer was asked for since the last one came.
    pub(in crate::control) is_offer_due: bool,
    /// Offers in a row that brought nothing of what was asked for: one may have crossed the request.
    pub(in crate::control) fruitless: u8,
    /// Rounds of requests that came to nothing.
    pub(in crate::control) vain: u8,
    /// Those of the last offer that can carry a track to the client: audio, video.
    pub(in crate::control) seen: (u32, u32),
    /// Free ones of the last offer: audio, video.
    pub(in crate::control) free: (u32, u32),
    /// Those of the free video sections that can carry AV1 too.
    pub(in crate::control) free_described: u32,
    /// How often a section for AV1 was asked for in vain: a client that has none gets the track in any.
    pub(in crate::control) described_asked: u8,
    /// How many the last offer had; 0 before the first one.
    pub(in crate::control) offered: usize,
}

impl Sections {
    /// An offer has come, with so many that can carry a track to the client. What was asked for and is not among them is on its way:
    /// asking for it again would double it.
    pub(in crate::control) fn take(&mut self, offered: usize, seen: (u32, u32)) {
        let grown = (seen.0.saturating_sub(self.seen.0), seen.1.saturating_sub(self.seen.1));
        self.asked = (self.asked.0.saturating_sub(grown.0), self.asked.1.saturating_sub(grown.1));
        (self.offered, self.seen, self.is_offer_due) = (offered, seen, false);
        if grown != (0, 0) {
            self.vain = 0;
        }
        self.fruitless = if grown != (0, 0) || self.asked == (0, 0) { 0 } else { self.fruitless + 1 };
        if self.fruitless > 1 {
            self.forget_requests();
            self.vain = self.vain.saturating_add(1);
        }
    }

    /// Nothing that was asked for comes any more.
    pub(in crate::control) fn forget_requests(&mut self) {
        (self.asked, self.is_offer_due, self.fruitless) = ((0, 0), false, 0);
    }

    /// How many more of each kind are to be asked for, when so many tracks wait; `None` when there is nothing to ask. Zeros ask for
    /// another offer with what is there.
    pub(in crate::control) fn request(&mut self, waiting: (u32, u32), waits_for_av1: bool) -> Option<(u32, u32)> {
        if self.offered == 0 || waiting == (0, 0) {
            return None;
        }
        let free = (self.free.0, if waits_for_av1 { self.free_described } else { self.free.1 });
        // What does not fit into one description waits until something goes.
        let room = SECTIONS_USED_MAX.saturating_sub(self.offered) as u32;
        let mut room = if self.vain < VAIN_MAX { room.saturating_sub(self.asked.0 + self.asked.1) } else { 0 };
        let mut more = |waiting: u32, asked: u32, free: u32| {
            let more = waiting.saturating_sub(asked + free).min(room);
            room -= more;
            more
        };
        let more = (more(waiting.0, self.asked.0, free.0), more(waiting.1, self.asked.1, free.1));
        // Free ones are given away when the client offers again; whether a request was crossed or came to nothing shows then, too.
        let has_fitting = waiting.0.min(free.0) + waiting.1.min(free.1) > 0;
        let gives_in_soon = waits_for_av1 && self.free.1 > self.free_described && !self.gives_in();
        if more == (0, 0) && (self.is_offer_due || !(has_fitting || gives_in_soon || self.fruitless > 0)) {
            return None;
        }
        self.asked = (self.asked.0 + more.0, self.asked.1 + more.1);
        self.is_offer_due = true;
        self.described_asked = self.described_asked.saturating_add(u8::from(waits_for_av1));
        Some(more)
    }

    /// A track in AV1 takes any section now.
    pub(in crate::control) fn gives_in(&self) -> bool {
        self.described_asked >= DESCRIBED_ASKED_MAX
    }

    /// What carried a track is free now: the client is to offer again. Whether it is not to do so already.
    pub(in crate::control) fn freed(&mut self) -> bool {
        self.offered > 0 && !std::mem::replace(&mut self.is_offer_due, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_cross_offers_are_not_made_twice() {
        let mut sections = Sections::default();
        assert_eq!(sections.request((1, 0), false), None, "nothing was offered yet");
        sections.take(2, (0, 0));
        assert_eq!(sections.request((1, 0), false), Some((1, 0)));
        assert_eq!(sections.request((2, 1), false), Some((1, 1)), "only what is new");
        assert_eq!(sections.request((2, 1), false), None);
        // The offer answers the first request; the second is on its way.
        sections.take(3, (1, 0));
        assert_eq!(sections.request((1, 1), false), None);
        sections.take(5, (2, 1));
        assert_eq!((sections.asked, sections.request((1, 0), false)), ((0, 0), Some((1, 0))));
        // A client that does not do as it was asked is asked again, once its offers cannot have crossed the request.
        sections.take(5, (2, 1));
        assert_eq!(sections.request((1, 0), false), Some((0, 0)), "did it cross?");
        assert_eq!(sections.request((1, 0), false), None);
        sections.take(5, (2, 1));
        assert_eq!(sections.request((1, 0), false), Some((1, 0)));
        // Free ones only need another offer, and are asked for once.
        sections.take(6, (3, 1));
        sections.free = (2, 0);
        assert_eq!(sections.request((1, 0), false), Some((0, 0)));
        assert_eq!(sections.request((2, 0), false), None);
        assert_eq!(sections.request((3, 0), false), Some((1, 0)));
        sections.forget_requests();
        sections.take(SECTIONS_USED_MAX - 1, (3, 1));
        sections.free = (0, 0);
        assert_eq!(sections.request((5, 5), false), Some((1, 0)), "what fits");
        assert_eq!(sections.request((5, 5), false), None);
        assert!(!sections.freed(), "it is to offer already");
    }

    #[test]
    fn a_client_that_never_does_as_it_was_asked_is_left_alone() {
        let mut sections = Sections::default();
        sections.take(2, (0, 0));
        let mut asked = 0;
        while sections.request((1, 0), false).is_some() {
            asked += 1;
            assert!(asked < 20);
            sections.take(2, (0, 0));
        }
        assert_eq!(asked, 2 * usize::from(VAIN_MAX));
        sections.take(3, (1, 0));
        assert_eq!(sections.request((1, 0), false), Some((1, 0)), "until it does");
    }

    #[test]
    fn a_track_in_av1_is_given_any_section_in_the_end() {
        // The client's sections do not have the descriptor, and there is no room for more.
        let mut sections = Sections { offered: SECTIONS_USED_MAX, seen: (0, 1), free: (0, 1), ..Sections::default() };
        for _ in 0..DESCRIBED_ASKED_MAX {
            assert_eq!(sections.request((0, 1), true), Some((0, 0)));
            sections.take(SECTIONS_USED_MAX, (0, 1));
        }
        assert_eq!(sections.request((0, 1), true), None);
    }
}
