//! Which worker a participant goes to. Participants of one room may live on several.

use super::Rooms;
use crate::base::id::WorkerId;
use crate::shard::mail::Command;

impl Rooms {
    /// Small rooms stay together on one worker until they need a good part of it; everybody else goes to the least loaded.
    pub(super) fn worker_for(&mut self, room: &str) -> WorkerId {
        let workers = usize::from(self.around.workers);
        let mut of_room = vec![0; workers];
        for p in self.rooms.get(room).into_iter().flat_map(|r| &r.participants) {
            of_room[usize::from(p.worker.0)] += p.streams();
        }
        let together = (0..workers).filter(|w| (1..self.around.rooms.streams_together).contains(&of_room[*w])).max_by_key(|w| of_room[*w]);
        let at = together.or_else(|| (0..workers).min_by_key(|w| self.loads[*w])).unwrap_or(0);
        self.loads[at] += 1;
        WorkerId(at as u8)
    }

    /// Looks what each worker carries, once a second: until the next look, whoever comes counts as one stream.
    pub(super) fn weigh(&mut self) {
        self.loads.fill(0);
        for p in self.rooms.values().flat_map(|r| &r.participants) {
            self.loads[usize::from(p.worker.0)] += p.streams();
        }
    }

    /// Workers that have members of a room.
    pub(super) fn workers_of(&self, room: &str) -> Vec<WorkerId> {
        let mut workers: Vec<WorkerId> = self.rooms.get(room).into_iter().flat_map(|r| &r.participants).map(|p| p.worker).collect();
        workers.sort_unstable();
        workers.dedup();
        workers
    }

    /// Tells the workers of a room of each other.
    pub(super) fn spread(&self, room: &str) {
        let (workers, Some(id)) = (self.workers_of(room), self.rooms.get(room).map(|r| r.id)) else { return };
        for worker in &workers {
            (self.around.mail)(*worker, Command::Spread { room: id, workers: workers.clone() });
        }
    }
}
