//! A 16550A serial port whose wire is infinitely fast.
//!
//! Characters leave as they are written; those that arrive wait for the guest without limit on time but with a
//! limit on number, so that none is ever overrun. Spec: National Semiconductor PC16550D data sheet.

use std::collections::VecDeque;
use std::sync::Arc;

use hyperkit_bus::{Device, InterruptLine, RestoreError, Saved};

/// Characters that wait for the guest to read them, at most.
const INPUT_MAX: usize = 4096;
/// How many of them count as in the chip's FIFO, which the guest can empty.
const FIFO_BYTES: usize = 16;

const VERSION: u8 = 1;

/// Offsets of the registers.
mod reg {
    pub(super) const DATA: u64 = 0;
    pub(super) const IER: u64 = 1;
    pub(super) const IIR_FCR: u64 = 2;
    pub(super) const LCR: u64 = 3;
    pub(super) const MCR: u64 = 4;
    pub(super) const LSR: u64 = 5;
    pub(super) const MSR: u64 = 6;
    pub(super) const SCR: u64 = 7;
}

const IER_RECEIVED: u8 = 1;
const IER_TRANSMIT_EMPTY: u8 = 2;
const IER_MASK: u8 = 0x0f;
const IIR_NONE: u8 = 1;
const IIR_TRANSMIT_EMPTY: u8 = 2;
const IIR_RECEIVED: u8 = 4;
const IIR_FIFO_ENABLED: u8 = 0xc0;
const FCR_ENABLE: u8 = 1;
const FCR_CLEAR_RECEIVER: u8 = 2;
const LCR_DIVISOR_LATCH: u8 = 0x80;
const MCR_MASK: u8 = 0x1f;
const MCR_LOOPBACK: u8 = 0x10;
const LSR_RECEIVED: u8 = 1;
const LSR_TRANSMITTER_IDLE: u8 = 0x60;
/// Carrier, data set ready, clear to send: somebody is at the other end.
const MSR_CONNECTED: u8 = 0xb0;

/// Gets what the guest sends, mostly one byte a call, on the vCPU's thread; must not block for long.
type Sink = Box<dyn FnMut(&[u8]) + Send>;

/// A serial port.
pub struct Serial {
    sink: Sink,
    line: Arc<dyn InterruptLine>,
    input: VecDeque<u8>,
    divisor: [u8; 2],
    ier: u8,
    fifo_enabled: bool,
    lcr: u8,
    mcr: u8,
    scr: u8,
    /// The transmitter ran empty and the guest was not told yet.
    transmit_empty: bool,
}

impl std::fmt::Debug for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serial").field("waiting", &self.input.len()).finish_non_exhaustive()
    }
}

impl Serial {
    /// A port that sends to `sink` and interrupts on `line`.
    pub fn new(sink: Sink, line: Arc<dyn InterruptLine>) -> Serial {
        Serial {
            sink,
            line,
            input: VecDeque::new(),
            divisor: [12, 0], // 9600 baud
            ier: 0,
            fifo_enabled: false,
            lcr: 3, // 8 bits, no parity
            mcr: 0,
            scr: 0,
            transmit_empty: false,
        }
    }

    /// Sends `bytes` to the guest; returns how many were taken, fewer when the guest does not read them.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(INPUT_MAX - self.input.len());
        self.input.extend(&bytes[..taken]);
        self.update_line();
        taken
    }

    /// The identification of the most urgent interrupt.
    fn pending(&self) -> u8 {
        if self.ier & IER_RECEIVED != 0 && !self.input.is_empty() {
            IIR_RECEIVED
        } else if self.ier & IER_TRANSMIT_EMPTY != 0 && self.transmit_empty {
            IIR_TRANSMIT_EMPTY
        } else {
            IIR_NONE
        }
    }

    fn update_line(&self) {
        self.line.set(self.pending() != IIR_NONE);
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        let latch = self.lcr & LCR_DIVISOR_LATCH != 0;
        match offset {
            reg::DATA | reg::IER if latch => self.divisor[offset as usize],
            reg::DATA => self.input.pop_front().unwrap_or(0),
            reg::IER => self.ier,
            reg::IIR_FCR => {
                let pending = self.pending();
                if pending == IIR_TRANSMIT_EMPTY {
                    self.transmit_empty = false;
                }
                pending | if self.fifo_enabled { IIR_FIFO_ENABLED } else { 0 }
            }
            reg::LCR => self.lcr,
            reg::MCR => self.mcr,
            reg::LSR => LSR_TRANSMITTER_IDLE | if self.input.is_empty() { 0 } else { LSR_RECEIVED },
            reg::MSR => self.modem_status(),
            reg::SCR => self.scr,
            _ => 0xff,
        }
    }

    fn modem_status(&self) -> u8 {
        if self.mcr & MCR_LOOPBACK == 0 {
            return MSR_CONNECTED;
        }
        // RTS, DTR, OUT1 and OUT2 come back as CTS, DSR, RI and DCD.
        let wire = |from: u8, to: u8| (self.mcr >> from & 1) << to;
        wire(1, 4) | wire(0, 5) | wire(2, 6) | wire(3, 7)
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        let latch = self.lcr & LCR_DIVISOR_LATCH != 0;
        match offset {
            reg::DATA | reg::IER if latch => self.divisor[offset as usize] = value,
            reg::DATA => self.transmit(value),
            reg::IER => {
                // Allowing the interrupt of an empty transmitter raises it at once, which drivers rely on.
                self.transmit_empty |= value & !self.ier & IER_TRANSMIT_EMPTY != 0;
                self.ier = value & IER_MASK;
            }
            reg::IIR_FCR => {
                self.fifo_enabled = value & FCR_ENABLE != 0;
                if value & FCR_CLEAR_RECEIVER != 0 {
                    self.input.drain(..self.input.len().min(FIFO_BYTES));
                }
            }
            reg::LCR => self.lcr = value,
            reg::MCR => self.mcr = value & MCR_MASK,
            reg::SCR => self.scr = value,
            _ => {}
        }
    }

    fn transmit(&mut self, byte: u8) {
        if self.mcr & MCR_LOOPBACK == 0 {
            (self.sink)(&[byte]);
        } else if self.input.len() < INPUT_MAX {
            self.input.push_back(byte);
        }
        self.transmit_empty = true;
    }
}

impl Device for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (offset, byte) in (offset..).zip(data) {
            *byte = self.read_register(offset);
        }
        self.update_line();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (offset, &byte) in (offset..).zip(data) {
            self.write_register(offset, byte);
        }
        self.update_line();
    }
}

impl Saved for Serial {
    fn save(&self) -> Vec<u8> {
        let [low, high] = self.divisor;
        let flags = u8::from(self.fifo_enabled) | u8::from(self.transmit_empty) << 1;
        let mut bytes = vec![VERSION, low, high, self.ier, self.lcr, self.mcr, self.scr, flags];
        bytes.extend(&self.input);
        bytes
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let [VERSION, low, high, ier, lcr, mcr, scr, flags, ref input @ ..] = *bytes else {
            return Err(RestoreError { device: "serial", why: "version or length is wrong".into() });
        };
        if input.len() > INPUT_MAX {
            return Err(RestoreError { device: "serial", why: format!("{} bytes of input", input.len()) });
        }
        self.divisor = [low, high];
        (self.ier, self.lcr, self.mcr, self.scr) = (ier & IER_MASK, lcr, mcr & MCR_MASK, scr);
        self.fifo_enabled = flags & 1 != 0;
        self.transmit_empty = flags & 2 != 0;
        self.input = input.iter().copied().collect();
        // The interrupt controller has its own snapshot; an edge too many is harmless, one too few is not.
        self.line.set(false);
        self.update_line();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
