//! All APICs of a machine, and the routing of messages between them. Usable from any thread.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::io::IoApic;
use crate::local::LocalApic;
use crate::message::{Delivery, Destination, Effect, Message};

/// How a processor learns that its local APIC has something for it. Called without any lock of the set held.
pub trait Wake: Send + Sync {
    /// Makes processor `id` look at its local APIC soon.
    fn wake(&self, id: u32);
}

/// The local APICs by id, and the I/O APIC.
pub struct ApicSet {
    local: Vec<Mutex<LocalApic>>,
    io: Mutex<IoApic>,
    wake: Box<dyn Wake>,
}

/// What [`ApicSet::save`] gives.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedSet {
    local: Vec<LocalApic>,
    io: IoApic,
}

impl std::fmt::Debug for ApicSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApicSet").field("local", &self.local.len()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ApicSet {
    /// The APICs of a machine of `processors` after reset. See [`LocalApic::new`] for `timer_shift`.
    pub fn new(processors: u32, timer_shift: u32, wake: Box<dyn Wake>) -> ApicSet {
        let local = (0..processors).map(|id| Mutex::new(LocalApic::new(id, timer_shift))).collect();
        ApicSet { local, io: Mutex::new(IoApic::default()), wake }
    }

    /// The local APIC of processor `id`, locked.
    ///
    /// # Panics
    /// When there is no such processor.
    pub fn local(&self, id: u32) -> MutexGuard<'_, LocalApic> {
        lock(&self.local[id as usize])
    }

    /// Drives an input of the I/O APIC.
    pub fn set_line(&self, pin: u32, high: bool) {
        let message = lock(&self.io).set_line(pin, high);
        if let Some(message) = message {
            self.send(0, &message);
        }
    }

    /// Reads a register of the I/O APIC at a byte offset in its window.
    pub fn read_io(&self, offset: u64) -> u32 {
        lock(&self.io).read(offset)
    }

    /// Writes a register of the I/O APIC at a byte offset in its window.
    pub fn write_io(&self, offset: u64, value: u32) {
        let message = lock(&self.io).write(offset, value);
        if let Some(message) = message {
            self.send(0, &message);
        }
    }

    /// Does what a register write of processor `from` causes elsewhere.
    pub fn apply(&self, from: u32, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Send(message) => self.send(from, &message),
            Effect::EndOfInterrupt(vector) => {
                let again = lock(&self.io).end_of_interrupt(vector);
                for message in again {
                    self.send(0, &message);
                }
            }
        }
    }

    /// Sends a message; `from` matters to the destinations that are relative to the sender.
    pub fn send(&self, from: u32, message: &Message) {
        if message.delivery == Delivery::LowestPriority {
            if let Some(id) = self.lowest_priority(from, message) {
                self.give(id, message);
            }
            return;
        }
        for id in 0..self.local.len() as u32 {
            if self.is_for(id, from, message) {
                self.give(id, message);
            }
        }
    }

    fn give(&self, id: u32, message: &Message) {
        let look = self.local(id).take(message);
        if look {
            self.wake.wake(id);
        }
    }

    fn lowest_priority(&self, from: u32, message: &Message) -> Option<u32> {
        (0..self.local.len() as u32)
            .filter(|id| self.is_for(*id, from, message))
            .min_by_key(|id| self.local(*id).processor_priority())
    }

    fn is_for(&self, id: u32, from: u32, message: &Message) -> bool {
        match message.to {
            Destination::Itself => id == from,
            Destination::All => true,
            Destination::Others => id != from,
            Destination::Physical(to) => self.local(id).matches_physical(to),
            Destination::Logical(to) => self.local(id).matches_logical(to),
        }
    }

    /// The state of all of them, while no processor runs.
    pub fn save(&self) -> SavedSet {
        SavedSet {
            local: self.local.iter().map(|local| lock(local).clone()).collect(),
            io: lock(&self.io).clone(),
        }
    }

    /// Takes over a saved state; returns false, with nothing changed, when it is of another number of processors
    /// or its local APICs have other ids.
    pub fn restore(&self, saved: &SavedSet) -> bool {
        let fits = |(id, local): (usize, &LocalApic)| local.id() as usize == id;
        if saved.local.len() != self.local.len() || !saved.local.iter().enumerate().all(fits) {
            return false;
        }
        for (mine, local) in self.local.iter().zip(&saved.local) {
            let mut mine = lock(mine);
            *mine = local.clone().with_timer_of(&mine);
        }
        *lock(&self.io) = saved.io.clone();
        for id in 0..self.local.len() as u32 {
            self.wake.wake(id);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    struct Woken(Arc<AtomicU32>);

    impl Wake for Woken {
        fn wake(&self, id: u32) {
            self.0.fetch_or(1 << id, Ordering::SeqCst);
        }
    }

    fn set(processors: u32) -> (ApicSet, Arc<AtomicU32>) {
        let woken = Arc::new(AtomicU32::new(0));
        let set = ApicSet::new(processors, 0, Box::new(Woken(Arc::clone(&woken))));
        for id in 0..processors {
            let _ = set.local(id).write(0xf0, 0x1ff, 0);
        }
        (set, woken)
    }

    fn write(set: &ApicSet, from: u32, offset: u64, value: u32) {
        let effect = set.local(from).write(offset, value, 0);
        set.apply(from, effect);
    }

    #[test]
    fn ipi_reaches_the_processors_that_the_shorthand_names() {
        let (set, woken) = set(3);
        write(&set, 1, 0x300, 0x000c_0041); // all but myself, vector 41
        assert_eq!(woken.swap(0, Ordering::SeqCst), 0b101);
        assert_eq!(set.local(0).acknowledge(), Some(0x41));
        assert_eq!(set.local(1).acknowledge(), None);
        write(&set, 1, 0x310, 2 << 24);
        write(&set, 1, 0x300, 0x0000_4042);
        assert_eq!(woken.swap(0, Ordering::SeqCst), 0b100);
        write(&set, 1, 0x300, 0x0004_0043);
        assert_eq!(woken.load(Ordering::SeqCst), 0b010);
    }

    #[test]
    fn init_and_start_up_reach_one_processor_with_its_page() {
        let (set, woken) = set(2);
        write(&set, 0, 0x310, 1 << 24);
        write(&set, 0, 0x300, 0x4500);
        write(&set, 0, 0x300, 0x8500); // de-assert: ignored
        write(&set, 0, 0x300, 0x4699);
        assert_eq!(woken.load(Ordering::SeqCst), 0b10);
        let events = set.local(1).take_events();
        assert!(events.init && events.start_up == Some(0x99) && !events.nmi);
        assert!(!set.local(1).has_events());
    }

    #[test]
    fn lowest_priority_goes_to_one_idle_processor() {
        let (set, woken) = set(2);
        write(&set, 0, 0x80, 0x80); // task priority of processor 0
        write(&set, 0, 0xd0, 1 << 24);
        write(&set, 1, 0xd0, 2 << 24);
        write(&set, 0, 0x310, 3 << 24);
        write(&set, 0, 0x300, 0x0951); // logical, lowest priority
        assert_eq!(woken.load(Ordering::SeqCst), 0b10);
    }

    #[test]
    fn level_line_interrupts_again_after_the_end_only_while_high() {
        let (set, _) = set(1);
        set.write_io(0, 0x10 + 2 * 5);
        set.write_io(0x10, 0x8030); // level, vector 30 (hex), unmasked
        set.set_line(5, true);
        assert_eq!(set.local(0).acknowledge(), Some(0x30));
        set.set_line(5, true);
        assert_eq!(set.local(0).pending(), None, "not again before the end of interrupt");
        write(&set, 0, 0xb0, 0);
        assert_eq!(set.local(0).acknowledge(), Some(0x30));
        set.set_line(5, false);
        write(&set, 0, 0xb0, 0);
        assert_eq!(set.local(0).pending(), None);
    }

    #[test]
    fn saved_set_comes_back_and_a_foreign_one_is_refused() {
        let (one, _) = set(1);
        let (two, _) = set(2);
        assert!(!one.restore(&two.save()));
        two.local(1).post(0x77, false);
        let saved = two.save();
        two.local(1).acknowledge();
        assert!(two.restore(&saved));
        assert_eq!(two.local(1).pending(), Some(0x77));
    }
}
