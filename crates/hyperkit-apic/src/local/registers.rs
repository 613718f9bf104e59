//! The registers of a local APIC, in memory and as model-specific registers. Spec: SDM vol. 3A, tables 11-1 and 11-6.

use super::{ESR_SEND_ILLEGAL, LVT_MASKED, LVT_TIMER, LocalApic, SVR_ENABLE};
use crate::message::{Delivery, Destination, Effect, Message};

/// A register that is not there, or a value that it does not take: #GP where it is model-specific.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the local APIC has no such register, or refuses the value")]
pub struct NoSuchRegister;

/// Register numbers: offset in the page divided by 16, and MSR number minus 0x800.
mod reg {
    pub const ID: u32 = 0x02;
    pub const VERSION: u32 = 0x03;
    pub const TASK_PRIORITY: u32 = 0x08;
    pub const ARBITRATION: u32 = 0x09;
    pub const PROCESSOR_PRIORITY: u32 = 0x0a;
    pub const END_OF_INTERRUPT: u32 = 0x0b;
    pub const REMOTE_READ: u32 = 0x0c;
    pub const LOGICAL_DESTINATION: u32 = 0x0d;
    pub const DESTINATION_FORMAT: u32 = 0x0e;
    pub const SPURIOUS: u32 = 0x0f;
    pub const IN_SERVICE: u32 = 0x10;
    pub const TRIGGER_MODE: u32 = 0x18;
    pub const REQUEST: u32 = 0x20;
    pub const ERROR_STATUS: u32 = 0x28;
    pub const LVT_CMCI: u32 = 0x2f;
    pub const COMMAND: u32 = 0x30;
    pub const COMMAND_HIGH: u32 = 0x31;
    pub const LVT_FIRST: u32 = 0x32;
    pub const LVT_LAST: u32 = 0x37;
    pub const INITIAL_COUNT: u32 = 0x38;
    pub const CURRENT_COUNT: u32 = 0x39;
    pub const DIVIDE: u32 = 0x3e;
    pub const SELF_IPI: u32 = 0x3f;
}

/// Version of an integrated APIC, highest LVT entry 6.
const VERSION: u32 = 0x0006_0014;

/// Bits that the LVT entries keep, by index in [`LocalApic`]'s table.
const LVT_BITS: [u32; 7] =
    [0x0001_07ff, 0x0007_00ff, 0x0001_07ff, 0x0001_07ff, 0x0001_a7ff, 0x0001_a7ff, 0x0001_00ff];

fn lvt_index(register: u32) -> usize {
    if register == reg::LVT_CMCI { 0 } else { (register - reg::LVT_FIRST) as usize + 1 }
}

impl LocalApic {
    /// Reads a register in memory, at a byte offset in the page. What is not there reads as 0.
    pub fn read(&self, offset: u64, now: u64) -> u32 {
        let register = (offset >> 4) as u32 & 0xff;
        match register {
            reg::ID => self.id << 24,
            reg::LOGICAL_DESTINATION => self.logical_destination,
            reg::DESTINATION_FORMAT => self.destination_format,
            reg::COMMAND_HIGH => (self.command >> 32) as u32,
            reg::SELF_IPI => 0,
            _ => self.read_common(register, now).unwrap_or(0),
        }
    }

    /// Writes a register in memory, at a byte offset in the page. What is not there ignores it.
    pub fn write(&mut self, offset: u64, value: u32, now: u64) -> Effect {
        let register = (offset >> 4) as u32 & 0xff;
        match register {
            reg::LOGICAL_DESTINATION => self.logical_destination = value & 0xff00_0000,
            reg::DESTINATION_FORMAT => self.destination_format = value | 0x0fff_ffff,
            reg::COMMAND_HIGH => self.command = self.command & 0xffff_ffff | u64::from(value) << 32,
            reg::COMMAND => {
                self.command = self.command & !0xffff_ffff | u64::from(value & !0x1000);
                return self.command_effect(u64::from(value), (self.command >> 56) as u32);
            }
            reg::SELF_IPI => {}
            _ => return self.write_common(register, value, now).unwrap_or(Effect::None),
        }
        Effect::None
    }

    /// Reads a register in x2APIC mode by the number of its MSR.
    ///
    /// # Errors
    /// [`NoSuchRegister`], also when the APIC is not in that mode.
    pub fn read_msr(&self, index: u32, now: u64) -> Result<u64, NoSuchRegister> {
        let register = self.extended_register(index)?;
        match register {
            reg::ID => Ok(u64::from(self.id)),
            reg::LOGICAL_DESTINATION => Ok(u64::from(self.logical_destination)),
            reg::COMMAND => Ok(self.command),
            reg::ARBITRATION | reg::END_OF_INTERRUPT | reg::REMOTE_READ | reg::SELF_IPI => {
                Err(NoSuchRegister)
            }
            _ => self.read_common(register, now).map(u64::from).ok_or(NoSuchRegister),
        }
    }

    /// Writes a register in x2APIC mode by the number of its MSR.
    ///
    /// # Errors
    /// [`NoSuchRegister`], also for reserved bits and when the APIC is not in that mode.
    pub fn write_msr(&mut self, index: u32, value: u64, now: u64) -> Result<Effect, NoSuchRegister> {
        let register = self.extended_register(index)?;
        match register {
            reg::COMMAND => {
                self.command = value & !0x1000;
                return Ok(self.command_effect(value, (value >> 32) as u32));
            }
            reg::SELF_IPI if value <= 0xff => {
                return Ok(Effect::Send(fixed(Destination::Itself, value as u8)));
            }
            reg::END_OF_INTERRUPT | reg::ERROR_STATUS if value != 0 => return Err(NoSuchRegister),
            reg::ID | reg::LOGICAL_DESTINATION | reg::SELF_IPI => return Err(NoSuchRegister),
            _ => {}
        }
        let value = u32::try_from(value).map_err(|_| NoSuchRegister)?;
        self.write_common(register, value, now).ok_or(NoSuchRegister)
    }

    fn extended_register(&self, index: u32) -> Result<u32, NoSuchRegister> {
        let register = index.wrapping_sub(0x800);
        if self.extended() && register < 0x100 { Ok(register) } else { Err(NoSuchRegister) }
    }

    fn read_common(&self, register: u32, now: u64) -> Option<u32> {
        let number = register as usize & 7;
        Some(match register {
            reg::VERSION => VERSION,
            reg::TASK_PRIORITY => self.task_priority,
            reg::ARBITRATION | reg::REMOTE_READ | reg::END_OF_INTERRUPT => 0,
            reg::PROCESSOR_PRIORITY => u32::from(self.processor_priority()),
            reg::SPURIOUS => self.spurious,
            reg::IN_SERVICE..reg::TRIGGER_MODE => self.in_service.register(number),
            reg::TRIGGER_MODE..reg::REQUEST => self.level.register(number),
            reg::REQUEST..reg::ERROR_STATUS => self.requested.register(number),
            reg::ERROR_STATUS => self.error_status,
            reg::COMMAND => self.command as u32,
            reg::LVT_CMCI | reg::LVT_FIRST..=reg::LVT_LAST => self.lvt[lvt_index(register)],
            reg::INITIAL_COUNT => self.timer.initial(),
            reg::CURRENT_COUNT => self.timer.current(self.lvt[LVT_TIMER], now),
            reg::DIVIDE => self.timer.divide(),
            _ => return None,
        })
    }

    fn write_common(&mut self, register: u32, value: u32, now: u64) -> Option<Effect> {
        match register {
            reg::TASK_PRIORITY => self.task_priority = value & 0xff,
            reg::END_OF_INTERRUPT => return Some(self.end_of_interrupt()),
            reg::SPURIOUS => self.set_spurious(value),
            reg::ERROR_STATUS => self.error_status = std::mem::take(&mut self.error_pending),
            reg::LVT_CMCI | reg::LVT_FIRST..=reg::LVT_LAST => self.set_lvt(lvt_index(register), value),
            reg::INITIAL_COUNT => self.timer.start(value, self.lvt[LVT_TIMER], now),
            reg::DIVIDE => self.timer.set_divide(value, self.lvt[LVT_TIMER], now),
            _ => return None,
        }
        Some(Effect::None)
    }

    fn set_spurious(&mut self, value: u32) {
        self.spurious = value & 0x1ff;
        if value & SVR_ENABLE == 0 {
            for entry in &mut self.lvt {
                *entry |= LVT_MASKED;
            }
        }
    }

    fn set_lvt(&mut self, index: usize, value: u32) {
        let mut value = value & LVT_BITS[index];
        if self.spurious & SVR_ENABLE == 0 {
            value |= LVT_MASKED;
        }
        if index == LVT_TIMER {
            self.timer.change_mode(self.lvt[index], value);
        }
        self.lvt[index] = value;
    }

    /// What writing the interrupt command register causes (SDM vol. 3A §11.6.1).
    fn command_effect(&mut self, command: u64, destination: u32) -> Effect {
        let vector = command as u8;
        let Some(delivery) = Delivery::from_bits(command as u32 >> 8) else { return Effect::None };
        let vectored = matches!(delivery, Delivery::Fixed | Delivery::LowestPriority);
        if vectored && vector < 16 {
            self.note_error(ESR_SEND_ILLEGAL);
            return Effect::None;
        }
        let deassert = command & 1 << 15 != 0 && command & 1 << 14 == 0;
        if delivery == Delivery::Init && deassert {
            return Effect::None; // INIT level de-assert has no effect since the Pentium 4
        }
        let to = match command >> 18 & 3 {
            0 if command & 1 << 11 != 0 => Destination::Logical(destination),
            0 => Destination::Physical(destination),
            1 => Destination::Itself,
            2 => Destination::All,
            _ => Destination::Others,
        };
        Effect::Send(Message { to, delivery, vector, level: false })
    }
}

fn fixed(to: Destination, vector: u8) -> Message {
    Message { to, delivery: Delivery::Fixed, vector, level: false }
}
