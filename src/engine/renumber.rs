//! Numbers of an incoming stream made continuous for one receiver: the compact map between both.
//!
//! ```text
//! in        7001 7002 7003 7004 | 312 313 314 315      two sources: a switch begins an epoch
//! position     0    1    2    3 |   4   5   6   7      every number of either, received or lost
//! dropped      .    .    x    . |   .   .   x   .      one bit each, for the last 2,048 (or fewer)
//! out          0    1         2 |   3   4       5      position minus what was dropped before it
//! ```
//! Both directions are answered from epochs and bits alone, so a retransmission is derived again and never stored. Used
//! for sequence numbers (the SRTP index: none is ever given twice) and for VP8 picture ids.

use std::collections::VecDeque;

/// Switches that can be looked back at.
const EPOCHS_MAX: usize = 14;

/// `WORDS * 64` numbers are remembered; `E` is what the caller ties to an epoch.
pub struct Renumber<E, const WORDS: usize> {
    /// Apart from those before it, since nearly all that comes is of it.
    current: Option<Epoch<E>>,
    /// Oldest first.
    before: VecDeque<Epoch<E>>,
    /// Positions seen: the newest is `end - 1`.
    end: u64,
    dropped: [u64; WORDS],
    /// Since the beginning.
    dropped_total: u64,
}

struct Epoch<E> {
    first_position: u64,
    /// Where the next epoch or the gap before it begins.
    end: u64,
    first_in: u64,
    tied: E,
}

/// What became of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes out as this number.
    Out(u64),
    /// It was dropped: nothing waits for it.
    Dropped,
}

impl<E, const WORDS: usize> Default for Renumber<E, WORDS> {
    fn default() -> Self {
        Self { current: None, before: VecDeque::new(), end: 0, dropped: [0; WORDS], dropped_total: 0 }
    }
}

impl<E, const WORDS: usize> Renumber<E, WORDS> {
    /// Reads what the next packet needs, so that it lies in the cache by then. The value means nothing.
    pub fn warm(&self) -> u64 {
        let word = self.end as usize / 64 % WORDS;
        self.end ^ self.dropped[word] ^ self.dropped_total ^ self.current.as_ref().map_or(0, |e| e.first_in)
    }

    const WINDOW: u64 = WORDS as u64 * 64;

    /// What comes next is another source; its numbers begin with `first_in`.
    pub fn switch(&mut self, first_in: u64, tied: E) {
        self.begin(Epoch { first_position: self.end, end: u64::MAX, first_in, tied });
    }

    fn begin(&mut self, epoch: Epoch<E>) {
        self.finish(epoch.first_position);
        if let Some(before) = self.current.replace(epoch) {
            // Most streams never have another.
            self.before.reserve_exact(EPOCHS_MAX - 1 - self.before.len());
            if self.before.len() == EPOCHS_MAX - 1 {
                self.before.pop_front();
            }
            self.before.push_back(before);
        }
    }

    fn finish(&mut self, at: u64) {
        if let Some(epoch) = &mut self.current {
            epoch.end = epoch.end.min(at);
        }
    }

    /// The epochs, the newest first.
    fn epochs(&self) -> impl Iterator<Item = &Epoch<E>> {
        self.current.iter().chain(self.before.iter().rev())
    }

    fn epoch(&self, back: usize) -> Option<&Epoch<E>> {
        match back {
            0 => self.current.as_ref(),
            _ => self.before.get(self.before.len().checked_sub(back)?),
        }
    }

    /// The numbers of the current source go on, tied to something else from `sequence` on. Nothing when that is not new.
    pub fn split(&mut self, sequence: u64, tied: E) {
        let Some(epoch) = &self.current else { return };
        let Some(position) = sequence.checked_sub(epoch.first_in).map(|n| epoch.first_position + n) else { return };
        if position >= self.end {
            self.begin(Epoch { first_position: position, end: u64::MAX, first_in: sequence, tied });
        }
    }

    /// Positions given so far: the next packet's number is not below it.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Whether this number of the current source is newer than all before it.
    pub fn is_new(&self, sequence: u64) -> bool {
        self.current.as_ref().is_some_and(|e| sequence >= e.first_in && e.first_position + (sequence - e.first_in) >= self.end)
    }

    /// What this number of the current source would go out as, when it is the one behind the newest.
    pub fn next_out(&self, sequence: u64) -> Option<u64> {
        let epoch = self.current.as_ref().filter(|e| sequence >= e.first_in)?;
        (epoch.first_position + (sequence - epoch.first_in) == self.end).then_some(self.end - self.dropped_total)
    }

    /// The number for the newest `sequence` once more, or for the one behind it: where most of what comes belongs, and found without
    /// a search. `None` for all others, and for one that was dropped.
    pub fn go_on(&mut self, sequence: u64, is_of: impl Fn(&E) -> bool) -> Option<u64> {
        let epoch = self.current.as_ref().filter(|e| is_of(&e.tied) && sequence >= e.first_in)?;
        let position = epoch.first_position + (sequence - epoch.first_in);
        if position >= epoch.end {
            return None;
        }
        if position == self.end {
            self.advance(position + 1);
            return Some(position - self.dropped_total);
        }
        let (word, bit) = Self::place(position);
        let is_newest = position + 1 == self.end && self.dropped[word] & bit == 0;
        is_newest.then_some(position - self.dropped_total)
    }

    /// Whether a number can be remembered or follows closely.
    pub fn has_place(&self, sequence: u64, is_of: impl Fn(&E) -> bool) -> bool {
        self.locate(sequence, is_of).is_some_and(|(_, position)| position < self.end + Self::WINDOW)
    }

    /// What is tied to the current epoch.
    pub fn current(&self) -> Option<&E> {
        self.current.as_ref().map(|e| &e.tied)
    }

    /// Leaves one number of the receiver unused before the switch that follows: what was under way there stays visibly
    /// incomplete, and nothing can fill it.
    pub fn leave_gap(&mut self) {
        self.finish(self.end);
        self.advance(self.end + 1);
    }

    /// The number for `sequence` of the newest epoch for which `is_of` holds. One that is new is taken up. `None` when
    /// it is from before that epoch, from after the next one began, or too old to be remembered.
    pub fn take(&mut self, sequence: u64, is_of: impl Fn(&E) -> bool) -> Option<(Fate, &E)> {
        let (back, position) = self.locate(sequence, is_of)?;
        if position >= self.end {
            self.advance(position + 1);
        }
        Some((self.fate(position), &self.epoch(back)?.tied))
    }

    /// The epoch that took over from the source of `sequence`: the next one for which `is_of` does not hold.
    pub fn successor(&self, sequence: u64, is_of: impl Fn(&E) -> bool) -> Option<&E> {
        let (back, _) = self.locate(sequence, &is_of)?;
        self.epochs().take(back).map(|e| &e.tied).filter(|tied| !is_of(tied)).last()
    }

    /// Takes `sequence` of the current source out, and what follows closes up. `false` when that is no longer possible
    /// because later numbers are given: then the receiver waits for it.
    pub fn drop(&mut self, sequence: u64, is_of: impl Fn(&E) -> bool) -> bool {
        let Some((_, position)) = self.locate(sequence, is_of) else { return true };
        if position < self.end {
            return self.fate(position) == Fate::Dropped;
        }
        self.advance(position + 1);
        let (word, bit) = Self::place(position);
        self.dropped[word] |= bit;
        self.dropped_total += 1;
        true
    }

    /// Whose number went out as `out`: its epoch and its sequence.
    pub fn find(&self, out: u64) -> Option<(&E, u64)> {
        let newest_word = self.end.checked_sub(1)? / 64;
        let oldest_word = newest_word.saturating_sub(WORDS as u64 - 1);
        let mut before = self.dropped_total;
        let (word, first_out) = (oldest_word..=newest_word).rev().find_map(|word| {
            before -= self.dropped_in(word);
            let first_out = word * 64 - before;
            (first_out <= out).then_some((word, first_out))
        })?;
        let mut to_pass = out - first_out;
        let mut kept = !self.dropped[(word % WORDS as u64) as usize];
        while to_pass > 0 && kept != 0 {
            kept &= kept - 1;
            to_pass -= 1;
        }
        let position = word * 64 + u64::from(kept.trailing_zeros());
        if kept == 0 || position >= self.end {
            return None;
        }
        let epoch = self.epochs().find(|e| e.first_position <= position && position < e.end)?;
        Some((&epoch.tied, epoch.first_in + (position - epoch.first_position)))
    }

    /// How many epochs back its own is, and the position of a number that is remembered or new.
    fn locate(&self, sequence: u64, is_of: impl Fn(&E) -> bool) -> Option<(usize, u64)> {
        let is_its = |e: &Epoch<E>| is_of(&e.tied) && e.first_in <= sequence;
        let (back, epoch) = match self.current.as_ref().filter(|e| is_its(e)) {
            Some(current) => (0, current),
            None => self.epochs().enumerate().find(|(_, e)| is_its(e))?,
        };
        let position = epoch.first_position + (sequence - epoch.first_in);
        let is_remembered = position + Self::WINDOW > self.end.next_multiple_of(64);
        (position < epoch.end && is_remembered).then_some((back, position))
    }

    fn fate(&self, position: u64) -> Fate {
        if self.dropped_total == 0 {
            return Fate::Out(position);
        }
        let (word, bit) = Self::place(position);
        if self.dropped[word] & bit != 0 {
            return Fate::Dropped;
        }
        let not_before = (position / 64..self.end.div_ceil(64)).map(|w| self.dropped_in(w)).sum::<u64>();
        let before = self.dropped_total - not_before + u64::from((self.dropped[word] & (bit - 1)).count_ones());
        Fate::Out(position - before)
    }

    fn dropped_in(&self, word: u64) -> u64 {
        u64::from(self.dropped[(word % WORDS as u64) as usize].count_ones())
    }

    fn place(position: u64) -> (usize, u64) {
        ((position / 64 % WORDS as u64) as usize, 1 << (position % 64))
    }

    /// Opens the words up to `end`.
    fn advance(&mut self, end: u64) {
        let opened = self.end.div_ceil(64);
        let needed = end.div_ceil(64);
        for word in opened.max(needed.saturating_sub(WORDS as u64))..needed {
            self.dropped[(word % WORDS as u64) as usize] = 0;
        }
        self.end = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;
    use std::collections::HashMap;

    type Numbers = Renumber<u32, 32>;

    #[test]
    fn the_map_of_a_subscription_is_small() {
        let bytes = size_of::<Renumber<[u32; 6], 32>>() + (EPOCHS_MAX - 1) * size_of::<Epoch<[u32; 6]>>();
        assert!(bytes <= 1024, "{bytes}");
    }

    #[test]
    fn rows() {
        let mut n = Numbers::default();
        n.switch(7_001, 1);
        let take = |n: &mut Numbers, s, of: u32| n.take(s, |e| *e == of).map(|(fate, _)| fate);
        assert_eq!(take(&mut n, 7_001, 1), Some(Fate::Out(0)));
        assert_eq!(take(&mut n, 7_002, 1), Some(Fate::Out(1)));
        assert!(n.drop(7_003, |_| true));
        assert_eq!(take(&mut n, 7_006, 1), Some(Fate::Out(4)), "7004 and 7005 are on their way");
        assert!(!n.drop(7_005, |_| true), "too late: its number is waited for");
        assert_eq!(take(&mut n, 7_005, 1), Some(Fate::Out(3)));
        assert_eq!(take(&mut n, 7_003, 1), Some(Fate::Dropped));
        assert_eq!(n.go_on(7_006, |e| *e == 1), Some(4), "the newest once more");
        assert_eq!((n.go_on(7_005, |_| true), n.go_on(7_008, |_| true), n.go_on(7_007, |e| *e == 2)), (None, None, None));
        n.leave_gap();
        assert_eq!(n.go_on(7_008, |_| true), None, "the gap is nobody's");
        n.switch(312, 2);
        assert_eq!(take(&mut n, 312, 2), Some(Fate::Out(6)));
        assert_eq!(take(&mut n, 311, 2), None, "before the switch");
        assert_eq!(take(&mut n, 7_004, 1), Some(Fate::Out(2)), "a repaired one of the old source keeps its number");
        assert_eq!(take(&mut n, 7_007, 1), None, "the old source is over");
        assert_eq!(n.find(5), None, "the gap is nobody's");
        assert_eq!(n.find(2), Some((&1, 7_004)));
        assert_eq!(n.find(6), Some((&2, 312)));
        assert_eq!(n.find(7), None, "not given yet");
        n.split(315, 3);
        assert_eq!(take(&mut n, 315, 3), Some(Fate::Out(9)), "313 and 314 are on their way");
        assert_eq!(take(&mut n, 314, 2), Some(Fate::Out(8)));
        assert_eq!(n.find(8), Some((&2, 314)));
    }

    /// Every number is given once, both directions agree, and no gap appears that the input did not have.
    #[test]
    fn random_walks() {
        for seed in 0..200 {
            let mut dice = Rng::new(seed);
            let mut n = Renumber::<u32, 4>::default();
            let mut given: HashMap<u64, (u32, u64)> = HashMap::new();
            let (mut source, mut sequence, mut newest) = (0, 10_000, None::<u64>);
            n.switch(sequence, source);
            for _ in 0..2_000 {
                if dice.one_in(100) {
                    source += 1;
                    sequence = dice.below(100_000) + 1_000;
                    n.switch(sequence, source);
                }
                let late = if dice.one_in(5) { dice.below(200) } else { 0 };
                let now = sequence.saturating_sub(late);
                if dice.one_in(4) {
                    n.drop(now, |e| *e == source);
                } else if let Some((Fate::Out(out), _)) = n.take(now, |e| *e == source) {
                    if let Some(before) = given.insert(out, (source, now)) {
                        assert_eq!(before, (source, now), "seed {seed}: {out} was given twice");
                    }
                    if newest.is_none_or(|newest| out + 100 > newest) {
                        assert_eq!(n.find(out).map(|(e, s)| (*e, s)), Some((source, now)), "seed {seed}");
                    }
                    newest = newest.max(Some(out));
                }
                if late == 0 {
                    sequence += if dice.one_in(20) { dice.below(90) } else { 1 };
                }
            }
        }
    }
}
