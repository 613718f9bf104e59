//! The I/O APIC: inputs, redirection entries, remote IRR. Spec: Intel 82093AA datasheet.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use crate::message::{Delivery, Destination, Message};

/// Number of inputs.
pub const PINS: u32 = 24;

/// Version register: 82093AA, highest entry 23.
const VERSION: u32 = (PINS - 1) << 16 | 0x11;

/// Bits of a redirection entry.
mod entry {
    pub const LOGICAL: u64 = 1 << 11;
    pub const REMOTE_IRR: u64 = 1 << 14;
    pub const LEVEL: u64 = 1 << 15;
    pub const MASKED: u64 = 1 << 16;
    /// Delivery status and remote IRR are read-only.
    pub const WRITABLE: u64 = 0xff00_0000_0001_afff;
}

/// The I/O APIC of a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IoApic {
    id: u32,
    select: u32,
    entries: [u64; PINS as usize],
    /// Inputs that are high.
    lines: u32,
}

impl Default for IoApic {
    fn default() -> IoApic {
        IoApic { id: 0, select: 0, entries: [entry::MASKED; PINS as usize], lines: 0 }
    }
}

impl IoApic {
    /// Reads a register at a byte offset in its window.
    pub fn read(&self, offset: u64) -> u32 {
        match offset & 0xff {
            0x00 => self.select,
            0x10 => self.read_selected(),
            _ => 0,
        }
    }

    /// Writes a register at a byte offset in its window. Returns what is to be sent.
    pub fn write(&mut self, offset: u64, value: u32) -> Option<Message> {
        match offset & 0xff {
            0x00 => self.select = value & 0xff,
            0x10 => return self.write_selected(value),
            _ => {}
        }
        None
    }

    fn read_selected(&self) -> u32 {
        match self.select {
            0 | 2 => self.id << 24,
            1 => VERSION,
            select => match self.entries.get((select.wrapping_sub(0x10) >> 1) as usize) {
                Some(value) if select & 1 == 0 => *value as u32,
                Some(value) => (*value >> 32) as u32,
                None => 0,
            },
        }
    }

    fn write_selected(&mut self, value: u32) -> Option<Message> {
        if self.select == 0 {
            self.id = value >> 24 & 15;
            return None;
        }
        let pin = self.select.checked_sub(0x10)? >> 1;
        let slot = self.entries.get_mut(pin as usize)?;
        let (keep, put) = if self.select & 1 == 0 {
            (!0xffff_ffff, u64::from(value))
        } else {
            (0xffff_ffff, u64::from(value) << 32)
        };
        let written = (*slot & keep | put) & entry::WRITABLE;
        let remote = if written & entry::LEVEL != 0 { *slot & entry::REMOTE_IRR } else { 0 };
        *slot = written | remote;
        self.assert_level(pin)
    }

    /// Drives an input. Returns what is to be sent; inputs that do not exist are ignored.
    pub fn set_line(&mut self, pin: u32, high: bool) -> Option<Message> {
        let entry = *self.entries.get(pin as usize)?;
        let was = self.lines >> pin & 1 != 0;
        self.lines = self.lines & !(1 << pin) | u32::from(high) << pin;
        if entry & entry::LEVEL != 0 {
            return self.assert_level(pin);
        }
        (high && !was && entry & entry::MASKED == 0).then(|| message(entry)).flatten()
    }

    /// Sends the interrupt of a level-triggered input that is high and not yet being served.
    fn assert_level(&mut self, pin: u32) -> Option<Message> {
        let slot = self.entries.get_mut(pin as usize)?;
        let high = self.lines >> pin & 1 != 0;
        if !high || *slot & entry::LEVEL == 0 || *slot & (entry::MASKED | entry::REMOTE_IRR) != 0 {
            return None;
        }
        let message = message(*slot)?;
        *slot |= entry::REMOTE_IRR;
        Some(message)
    }

    /// The interrupt with this vector was finished: inputs that are still high interrupt again.
    pub fn end_of_interrupt(&mut self, vector: u8) -> Vec<Message> {
        let mut again = Vec::new();
        for pin in 0..PINS {
            let slot = &mut self.entries[pin as usize];
            if *slot as u8 == vector && *slot & entry::LEVEL != 0 && *slot & entry::REMOTE_IRR != 0 {
                *slot &= !entry::REMOTE_IRR;
                again.extend(self.assert_level(pin));
            }
        }
        again
    }
}

fn message(entry: u64) -> Option<Message> {
    let destination = (entry >> 56) as u32;
    Some(Message {
        to: if entry & entry::LOGICAL != 0 {
            Destination::Logical(destination)
        } else {
            Destination::Physical(destination)
        },
        delivery: Delivery::from_bits((entry >> 8) as u32)?,
        vector: entry as u8,
        level: entry & entry::LEVEL != 0,
    })
}
