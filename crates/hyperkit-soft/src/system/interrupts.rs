//! How interrupts reach a vCPU: its local APIC, timers, the I/O APIC, the other vCPUs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hyperkit_apic::{ApicSet, Wake};
use hyperkit_hv::{CpuModel, Exit, Tsc, X86State};

use crate::attention::{Attention, want};
use crate::cpu::{Cpu, seg};
use crate::decode::lines::ByAddress;
use crate::flags::bit;
use crate::system::Next;
use crate::system::clock::{Source, duration};
use crate::system::delivery::Event;
use crate::system::rendezvous::Rendezvous;
use crate::trap::vector;

/// Physical address of the I/O APIC's page.
pub const IO_APIC: u64 = 0xfec0_0000;

/// What the vCPUs of a machine share.
#[derive(Debug)]
pub struct Processors {
    /// Local APICs and I/O APIC.
    pub apics: ApicSet,
    /// Each vCPU's, by number.
    pub attention: Vec<Arc<Attention>>,
    /// What CPUID says.
    pub model: CpuModel,
    /// Whether AVX and its kin are offered, where the host has them.
    pub wide: bool,
    /// What the guest's counter follows.
    source: Source,
    /// What is added to that to get the guest's counter.
    tsc_offset: AtomicU64,
    /// Which vCPUs wait for start-up.
    waiting: Vec<AtomicBool>,
    /// Who has stopped writing to pages that somebody decodes.
    pub(crate) rendezvous: Rendezvous,
}

struct Waker(Vec<Arc<Attention>>);

impl Wake for Waker {
    fn wake(&self, id: u32) {
        if let Some(attention) = self.0.get(id as usize) {
            attention.ask(want::INTERRUPT);
        }
    }
}

/// log2 of the ratio of the time-stamp counter to the local APIC's timer clock, chosen so that the latter's frequency
/// in Hz fits the 32 bits that CPUID leaf 0x15 has for it.
pub fn timer_shift(tsc: Tsc) -> u32 {
    let hertz = u64::from(tsc.khz) * 1000;
    (0..8).find(|shift| hertz >> shift <= u64::from(u32::MAX)).unwrap_or(7)
}

impl Processors {
    /// Those of a machine that has just been switched on: its counter starts at 0.
    pub fn new(model: CpuModel) -> Arc<Processors> {
        Processors::offering(model, true, Source::Host)
    }

    /// The same, with or without AVX and its kin, which need code to be generated, and with a choice of time.
    pub fn offering(model: CpuModel, wide: bool, source: Source) -> Arc<Processors> {
        let attention: Vec<_> = (0..model.vcpus.max(1)).map(|_| Arc::new(Attention::default())).collect();
        let wake = Box::new(Waker(attention.clone()));
        let apics = ApicSet::new(model.vcpus.max(1), timer_shift(model.tsc), wake);
        let waiting = (0..attention.len()).map(|id| AtomicBool::new(id != 0)).collect();
        let rendezvous = Rendezvous::new(attention.len());
        let tsc_offset = AtomicU64::new(0u64.wrapping_sub(source.ticks(model.tsc, 0)));
        Arc::new(Processors { apics, attention, model, wide, source, tsc_offset, waiting, rendezvous })
    }

    /// Frequency of the counter.
    pub fn tsc(&self) -> Tsc {
        self.model.tsc
    }

    /// The counter now, as a processor sees it that has not written its own and has retired so many instructions.
    #[inline]
    pub fn ticks_at(&self, retired: u64) -> u64 {
        self.source.ticks(self.model.tsc, retired).wrapping_add(self.tsc_offset.load(Ordering::Relaxed))
    }

    /// The counter as of what the first processor told last.
    pub fn ticks(&self) -> u64 {
        self.ticks_at(self.attention[0].retired())
    }

    /// Whether vCPU `id` waits for start-up.
    pub fn is_waiting(&self, id: u32) -> bool {
        self.waiting.get(id as usize).is_some_and(|waiting| waiting.load(Ordering::SeqCst))
    }

    /// Says whether vCPU `id` waits for start-up; its next `run` goes by it.
    pub fn set_waiting(&self, id: u32, value: bool) {
        if let Some(waiting) = self.waiting.get(id as usize) {
            waiting.store(value, Ordering::SeqCst);
        }
    }

    /// Makes the counter go on from `ticks`.
    pub fn set_ticks(&self, ticks: u64) {
        let now = self.source.ticks(self.model.tsc, self.attention[0].retired());
        self.tsc_offset.store(ticks.wrapping_sub(now), Ordering::Relaxed);
    }
}

/// A vCPU's side of the interrupt system.
#[derive(Debug)]
pub struct Interrupts {
    /// The vCPU's number, which is its APIC id.
    pub id: u32,
    processors: Arc<Processors>,
    /// When the local APIC's timer fires next, by [`Cpu::tsc`]; all ones: never.
    deadline: u64,
    /// Page of the local APIC's registers; all ones where they are not in memory.
    window: u64,
    /// An interrupt waits for IF, or for the end of a shadow.
    pub(crate) deferred: bool,
    /// An NMI's handler has not yet returned.
    pub nmi_blocked: bool,
    /// An NMI waits for that.
    nmi_waiting: bool,
    /// Waits for start-up. [`Processors::set_waiting`] tells a snapshot.
    pub waiting: bool,
    /// Pages that other processors were asked not to write to without a note, with the meeting and who was asked
    /// (`rendezvous`).
    pub(crate) awaited: ByAddress<usize, (u64, u8)>,
    /// The last meeting that was attended (`rendezvous`).
    pub(crate) attended: u64,
    /// All other processors stand still (`rendezvous`).
    pub(crate) stops_others: bool,
    /// PAUSE instructions since the host was last told that this processor waits.
    pauses: u32,
}

impl Interrupts {
    /// Those of vCPU `id`: number 0 runs, the others wait for start-up.
    pub fn new(id: u32, processors: Arc<Processors>) -> Interrupts {
        let window = processors.apics.local(id).window().unwrap_or(u64::MAX);
        Interrupts {
            id,
            processors,
            deadline: u64::MAX,
            window,
            deferred: false,
            nmi_blocked: false,
            nmi_waiting: false,
            waiting: id != 0,
            awaited: ByAddress::default(),
            attended: 0,
            stops_others: false,
            pauses: 0,
        }
    }

    /// The same, to keep.
    pub(crate) fn shared_handle(&self) -> Arc<Processors> {
        Arc::clone(&self.processors)
    }

    /// What the vCPUs share.
    #[inline]
    pub fn shared(&self) -> &Processors {
        &self.processors
    }
}

/// PAUSE instructions after which a processor that has company gives its core of the host away for a moment: whom it
/// waits for may have none.
const PAUSES: u32 = 64;

impl Cpu {
    /// PAUSE: this processor waits for another one.
    #[inline]
    pub fn pause(&mut self) {
        self.interrupts.pauses += 1;
        if self.interrupts.pauses >= PAUSES {
            self.interrupts.pauses = 0;
            if self.interrupts.processors.attention.len() > 1 {
                std::thread::yield_now();
            }
        }
    }

    /// IF was set: an interrupt that waited for it is looked for again, at the next block.
    #[inline]
    pub fn interrupts_enabled(&mut self) {
        if self.interrupts.deferred {
            self.look_for_interrupts();
        }
    }

    /// Takes over what may have changed outside since the last run.
    pub fn resume(&mut self) {
        self.interrupts.waiting = self.interrupts.processors.is_waiting(self.interrupts.id);
        if self.mmu.rounds != self.ram.dirty().rounds() {
            self.mmu.rounds = self.ram.dirty().rounds();
            self.protect_all();
        }
        self.apic_changed();
        self.look_for_interrupts();
    }

    /// Has the local APIC looked at before the next block.
    pub fn look_for_interrupts(&mut self) {
        self.attention.note(want::INTERRUPT);
    }

    /// A register of the local APIC was written: takes over where it is and when its timer fires.
    pub fn apic_changed(&mut self) {
        let local = self.interrupts.processors.apics.local(self.interrupts.id);
        self.interrupts.window = local.window().unwrap_or(u64::MAX);
        self.interrupts.deadline = local.deadline().unwrap_or(u64::MAX);
        let pending = local.pending().is_some();
        drop(local);
        if pending {
            self.look_for_interrupts();
        }
    }

    /// Fires the timer if its time has come.
    fn check_timer(&mut self) {
        if self.interrupts.deadline == u64::MAX {
            return;
        }
        let now = self.tsc();
        if now < self.interrupts.deadline {
            return;
        }
        let mut local = self.interrupts.processors.apics.local(self.interrupts.id);
        let look = local.expire(now);
        self.interrupts.deadline = local.deadline().unwrap_or(u64::MAX);
        drop(local);
        if look {
            self.look_for_interrupts();
        }
    }

    /// Whether there is a reason to look up: somebody wants attention, a page of code was written, the timer fires.
    pub(crate) fn is_due(&mut self) -> bool {
        if self.interrupts.deadline != u64::MAX && self.tsc() >= self.interrupts.deadline {
            self.blocks.countdown = 0;
        }
        self.blocks.countdown == 0
            || self.attention.wanted() != 0
            || self.ram.watch().pending(self.interrupts.id)
    }

    /// Between blocks, when attention is wanted or time is up: timers, interrupts, kicks, written code pages.
    pub fn look_up(&mut self) -> Next {
        self.check_timer();
        if self.attention.take(want::CODE) != 0 {
            self.meet();
        }
        if self.attention.take(want::KICK) != 0 {
            return Next::Exit(Exit::Kicked);
        }
        self.drop_written_code();
        if self.interrupts.waiting {
            return self.sleep();
        }
        if self.shadow {
            self.shadow = false;
            self.interrupts.deferred = true;
            self.look_for_interrupts();
            return Next::Run;
        }
        let deferred = self.interrupts.deferred && self.flags.rest & bit::IF != 0;
        if self.attention.take(want::INTERRUPT) != 0 || deferred { self.take_interrupt() } else { Next::Run }
    }

    /// Drops blocks of pages that somebody else wrote.
    fn drop_written_code(&mut self) {
        if !self.ram.watch().pending(self.interrupts.id) {
            return;
        }
        for page in self.ram.watch().take(self.interrupts.id) {
            self.blocks.written(page, 0, 4095);
        }
    }

    /// Delivers what the local APIC has, if it can be taken now.
    fn take_interrupt(&mut self) -> Next {
        let enabled = self.flags.rest & bit::IF != 0;
        let mut local = self.interrupts.processors.apics.local(self.interrupts.id);
        let events = if local.has_events() { local.take_events() } else { hyperkit_apic::Events::default() };
        if events.init {
            // With the lock held: what comes after INIT, SIPI above all, stays.
            local.reset();
        }
        let vector =
            if enabled && !events.init && !self.interrupts.waiting { local.acknowledge() } else { None };
        self.interrupts.deferred = local.pending().is_some();
        drop(local);
        if events.init {
            self.init();
        }
        if let Some(page) = events.start_up
            && self.interrupts.waiting
        {
            self.start_up(page);
        }
        self.interrupts.nmi_waiting |= events.nmi;
        if self.interrupts.waiting {
            return Next::Run;
        }
        if self.interrupts.nmi_waiting {
            self.interrupts.deferred = true;
        }
        if let Some(vector) = vector {
            return self.interrupt(vector);
        }
        if self.interrupts.nmi_waiting && !self.interrupts.nmi_blocked {
            self.interrupts.nmi_waiting = false;
            self.interrupts.nmi_blocked = true;
            return self.interrupt(vector::NMI);
        }
        Next::Run
    }

    fn interrupt(&mut self, vector: u8) -> Next {
        self.halted = false;
        self.deliver(Event { vector, error: None, rip: self.rip, software: false, resume: false })
    }

    /// In HLT, or before start-up: sleeps until there is something to do.
    pub fn sleep(&mut self) -> Next {
        self.shadow = false;
        loop {
            self.check_timer();
            if self.attention.take(want::KICK) != 0 {
                return Next::Exit(if self.interrupts.waiting { Exit::Waiting } else { Exit::Kicked });
            }
            if self.attention.take(want::INTERRUPT) != 0 {
                let next = self.take_interrupt();
                if next != Next::Run || (!self.halted && !self.interrupts.waiting) {
                    return next;
                }
                continue;
            }
            self.step_aside();
            self.attention.take(want::CODE);
            let limit = self.until_deadline();
            self.interrupts.processors.source.asleep(|| self.attention.sleep(limit));
            self.join();
        }
    }

    fn until_deadline(&self) -> Option<std::time::Duration> {
        let deadline = self.interrupts.deadline;
        let ticks = deadline.saturating_sub(self.tsc());
        (deadline != u64::MAX).then(|| duration(ticks, self.interrupts.processors.tsc()))
    }

    /// INIT, of which the local APIC knows already: as after reset, but for x87, SSE and most MSRs (SDM vol. 3A, table
    /// 10-1); then waits for start-up.
    fn init(&mut self) {
        let mut state = X86State::after_reset();
        state.fxsave = self.fx.0.to_vec();
        state.upper = self.upper.0.to_vec();
        state.xcr0 = self.xcr0;
        state.cr0 |= self.cr0 & (crate::system::cr0::CD | crate::system::cr0::NW);
        self.take_state(&state);
        self.apic_changed();
        self.set_waiting(self.interrupts.id != 0);
    }

    /// SIPI: runs from page `page` in real mode.
    fn start_up(&mut self, page: u8) {
        self.segments[seg::CS].selector = u16::from(page) << 8;
        self.segments[seg::CS].base = u64::from(page) << 12;
        self.rip = 0;
        self.halted = false;
        self.set_waiting(false);
        self.refresh();
    }

    fn set_waiting(&mut self, waiting: bool) {
        self.interrupts.waiting = waiting;
        self.interrupts.processors.set_waiting(self.interrupts.id, waiting);
    }

    /// Reads a register of a local or I/O APIC, if `phys` is in one of their pages.
    pub fn apic_read(&mut self, phys: u64, bytes: &mut [u8]) -> bool {
        let page = phys & !0xfff;
        let value = if page == self.interrupts.window {
            let local = self.interrupts.processors.apics.local(self.interrupts.id);
            local.read(phys & 0xff0, self.tsc())
        } else if page == IO_APIC {
            self.interrupts.processors.apics.read_io(phys & 0xff0)
        } else {
            return false;
        };
        let value = u64::from(value) >> ((phys & 3) * 8);
        let len = bytes.len().min(8);
        bytes.fill(0);
        bytes[..len].copy_from_slice(&value.to_le_bytes()[..len]);
        true
    }

    /// Writes a register of a local or I/O APIC, if `phys` is in one of their pages.
    pub fn apic_write(&mut self, phys: u64, bytes: &[u8]) -> bool {
        let page = phys & !0xfff;
        if page != self.interrupts.window && page != IO_APIC {
            return false;
        }
        let Some(word) = bytes.first_chunk::<4>().filter(|_| phys & 15 == 0) else { return true };
        let value = u32::from_le_bytes(*word);
        let now = self.tsc();
        let processors = &self.interrupts.processors;
        if page == IO_APIC {
            processors.apics.write_io(phys & 0xff0, value);
        } else {
            let effect = processors.apics.local(self.interrupts.id).write(phys & 0xff0, value, now);
            processors.apics.apply(self.interrupts.id, effect);
            self.apic_changed();
        }
        true
    }
}
