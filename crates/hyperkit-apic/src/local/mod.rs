//! The local APIC: requests, priorities, end of interrupt. Spec: SDM vol. 3A §11.

mod bits;
mod registers;
#[cfg(test)]
mod tests;
mod timer;

use serde::{Deserialize, Serialize};

use crate::message::{Delivery, Effect, Message};
use bits::Vectors;
pub use registers::NoSuchRegister;
use timer::Timer;

/// IA32_APIC_BASE: this is the bootstrap processor.
const BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode.
pub const BASE_EXTENDED: u64 = 1 << 10;
/// IA32_APIC_BASE: the APIC is on.
pub const BASE_ENABLE: u64 = 1 << 11;
/// Where the registers are after reset.
const BASE_ADDRESS: u64 = 0xfee0_0000;

/// Spurious-vector register: software enable.
const SVR_ENABLE: u32 = 1 << 8;
/// LVT entry: masked.
const LVT_MASKED: u32 = 1 << 16;

/// Error status: an illegal vector was received or sent.
const ESR_SEND_ILLEGAL: u32 = 1 << 5;
const ESR_RECEIVE_ILLEGAL: u32 = 1 << 6;

/// What came besides vectored interrupts; taken with [`LocalApic::take_events`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Events {
    /// A non-maskable interrupt.
    pub nmi: bool,
    /// INIT: reset and wait for start-up.
    pub init: bool,
    /// Start-up at this page number. Comes after `init` when both are set.
    pub start_up: Option<u8>,
}

/// The local APIC of one processor.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LocalApic {
    id: u32,
    base: u64,
    task_priority: u32,
    logical_destination: u32,
    destination_format: u32,
    spurious: u32,
    requested: Vectors,
    in_service: Vectors,
    level: Vectors,
    error_pending: u32,
    error_status: u32,
    command: u64,
    /// LVT: CMCI, timer, thermal, performance counters, LINT0, LINT1, error.
    lvt: [u32; 7],
    timer: Timer,
    events: Events,
}

/// Index in [`LocalApic::lvt`].
const LVT_TIMER: usize = 1;
const LVT_ERROR: usize = 6;

impl LocalApic {
    /// The APIC with this id after reset; number 0 is the bootstrap processor's. The timer counts ticks of the
    /// time-stamp counter divided by `1 << timer_shift`.
    pub fn new(id: u32, timer_shift: u32) -> LocalApic {
        let bsp = if id == 0 { BASE_BSP } else { 0 };
        LocalApic {
            id,
            base: BASE_ADDRESS | BASE_ENABLE | bsp,
            task_priority: 0,
            logical_destination: 0,
            destination_format: u32::MAX,
            spurious: 0xff,
            requested: Vectors::default(),
            in_service: Vectors::default(),
            level: Vectors::default(),
            error_pending: 0,
            error_status: 0,
            command: 0,
            lvt: [LVT_MASKED; 7],
            timer: Timer::new(timer_shift),
            events: Events::default(),
        }
    }

    /// The same, counting at the rate of `other`: the rate is the machine's, not the saved state's.
    pub(crate) fn with_timer_of(mut self, other: &LocalApic) -> LocalApic {
        self.timer.set_shift(other.timer.shift());
        self
    }

    /// The APIC id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Whether the registers are in memory, and at which physical address their page is.
    pub fn window(&self) -> Option<u64> {
        (self.base & BASE_ENABLE != 0 && !self.extended()).then_some(self.base & 0x000f_ffff_ffff_f000)
    }

    fn extended(&self) -> bool {
        self.base & BASE_EXTENDED != 0
    }

    /// Writes IA32_APIC_BASE.
    ///
    /// # Errors
    /// [`NoSuchRegister`] for reserved bits and for the forbidden ways between the modes (SDM vol. 3A §11.12.5).
    pub fn set_base(&mut self, value: u64) -> Result<(), NoSuchRegister> {
        let allowed = BASE_BSP | BASE_EXTENDED | BASE_ENABLE | 0x000f_ffff_ffff_f000;
        let mode = value & (BASE_EXTENDED | BASE_ENABLE);
        let was = self.base & (BASE_EXTENDED | BASE_ENABLE);
        let forbidden = mode == BASE_EXTENDED
            || (was == BASE_EXTENDED | BASE_ENABLE && mode == BASE_ENABLE)
            || (was == 0 && mode == BASE_EXTENDED | BASE_ENABLE);
        if value & !allowed != 0 || forbidden {
            return Err(NoSuchRegister);
        }
        if mode == 0 && was != 0 {
            let fresh = LocalApic::new(self.id, self.timer.shift());
            *self = LocalApic { events: self.events, ..fresh };
        }
        self.base = value & !BASE_BSP | self.base & BASE_BSP;
        if mode == BASE_EXTENDED | BASE_ENABLE {
            self.logical_destination = (self.id >> 4) << 16 | 1 << (self.id & 15);
        }
        Ok(())
    }

    /// What INIT does to the APIC: everything but the id and the base is as after reset.
    pub fn reset(&mut self) {
        let base = self.base;
        *self = LocalApic::new(self.id, self.timer.shift());
        self.base = base;
        if self.extended() {
            self.logical_destination = (self.id >> 4) << 16 | 1 << (self.id & 15);
        }
    }

    fn software_enabled(&self) -> bool {
        self.spurious & SVR_ENABLE != 0 && self.base & BASE_ENABLE != 0
    }

    /// Takes a message. Returns whether the processor has to look.
    pub fn take(&mut self, message: &Message) -> bool {
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => self.post(message.vector, message.level),
            Delivery::Nmi => {
                self.events.nmi = true;
                true
            }
            Delivery::Init => {
                self.events = Events { init: true, ..Events::default() };
                true
            }
            Delivery::StartUp => {
                self.events.start_up = Some(message.vector);
                true
            }
        }
    }

    /// Requests an interrupt. Returns whether the processor has to look.
    pub fn post(&mut self, vector: u8, level: bool) -> bool {
        if !self.software_enabled() {
            return false;
        }
        if vector < 16 {
            self.note_error(ESR_RECEIVE_ILLEGAL);
            return false;
        }
        self.requested.insert(vector);
        if level {
            self.level.insert(vector)
        } else {
            self.level.remove(vector)
        }
        true
    }

    fn note_error(&mut self, bit: u32) {
        self.error_pending |= bit;
        let entry = self.lvt[LVT_ERROR];
        let vector = entry as u8;
        if entry & LVT_MASKED == 0 && vector >= 16 && self.software_enabled() {
            self.requested.insert(vector);
            self.level.remove(vector);
        }
    }

    /// Processor priority (SDM vol. 3A §11.8.3.1).
    pub fn processor_priority(&self) -> u8 {
        let serving = self.in_service.highest().unwrap_or(0);
        let task = self.task_priority as u8;
        if task >> 4 >= serving >> 4 { task } else { serving & 0xf0 }
    }

    /// The vector that would interrupt now.
    pub fn pending(&self) -> Option<u8> {
        let vector = self.requested.highest()?;
        (vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// Moves the pending vector into service and returns it.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.requested.remove(vector);
        self.in_service.insert(vector);
        Some(vector)
    }

    /// Finishes the interrupt in service.
    pub fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.in_service.highest() else { return Effect::None };
        self.in_service.remove(vector);
        if self.level.contains(vector) { Effect::EndOfInterrupt(vector) } else { Effect::None }
    }

    /// CR8: the class of the task priority.
    pub fn cr8(&self) -> u64 {
        u64::from(self.task_priority >> 4 & 15)
    }

    /// Writes CR8; bits above 3 are the caller's to refuse.
    pub fn set_cr8(&mut self, value: u64) {
        self.task_priority = (value as u32 & 15) << 4;
    }

    /// Whether [`LocalApic::take_events`] has something to give.
    pub fn has_events(&self) -> bool {
        self.events != Events::default()
    }

    /// Takes NMI, INIT and start-up off.
    pub fn take_events(&mut self) -> Events {
        std::mem::take(&mut self.events)
    }

    /// When the timer fires next, in ticks of the time-stamp counter.
    pub fn deadline(&self) -> Option<u64> {
        self.timer.deadline()
    }

    /// Fires the timer if its time has come. Returns whether the processor has to look.
    pub fn expire(&mut self, now: u64) -> bool {
        if !self.timer.expire(now, self.lvt[LVT_TIMER]) || self.lvt[LVT_TIMER] & LVT_MASKED != 0 {
            return false;
        }
        self.post(self.lvt[LVT_TIMER] as u8, false)
    }

    /// IA32_TSC_DEADLINE.
    pub fn tsc_deadline(&self) -> u64 {
        self.timer.tsc_deadline(self.lvt[LVT_TIMER])
    }

    /// Writes IA32_TSC_DEADLINE; without effect in the other timer modes.
    pub fn set_tsc_deadline(&mut self, value: u64) {
        self.timer.set_tsc_deadline(value, self.lvt[LVT_TIMER]);
    }

    /// Whether a message to this logical address is for this APIC (SDM vol. 3A §11.6.2.2 and §11.12.10.2).
    pub fn matches_logical(&self, to: u32) -> bool {
        if self.extended() {
            let mine = self.logical_destination;
            return to == u32::MAX || (mine >> 16 == to >> 16 && mine & to & 0xffff != 0);
        }
        let (mine, to) = (self.logical_destination >> 24, to & 0xff);
        if to == 0xff {
            return true;
        }
        if self.destination_format >> 28 == 0xf {
            return mine & to != 0;
        }
        mine >> 4 == to >> 4 && mine & to & 0xf != 0
    }

    /// Whether a message to this physical id is for this APIC; all ones is for everybody.
    pub fn matches_physical(&self, to: u32) -> bool {
        let everybody = to == u32::MAX || (!self.extended() && to & 0xff == 0xff);
        everybody || to == self.id
    }
}
