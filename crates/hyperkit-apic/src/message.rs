//! What APICs say to each other.

use serde::{Deserialize, Serialize};

/// How a message is taken (SDM vol. 3A §11.6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delivery {
    /// An interrupt with a vector, to every processor named.
    Fixed,
    /// The same, to the one of them with the lowest priority.
    LowestPriority,
    /// A non-maskable interrupt.
    Nmi,
    /// Reset, then wait for start-up.
    Init,
    /// Start at page `vector`.
    StartUp,
}

impl Delivery {
    /// From the three-bit field; `None` for SMI, ExtINT and reserved values, which nothing here takes.
    pub fn from_bits(bits: u32) -> Option<Delivery> {
        match bits & 7 {
            0 => Some(Delivery::Fixed),
            1 => Some(Delivery::LowestPriority),
            4 => Some(Delivery::Nmi),
            5 => Some(Delivery::Init),
            6 => Some(Delivery::StartUp),
            _ => None,
        }
    }
}

/// Whom a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// The processor with this APIC id.
    Physical(u32),
    /// The processors whose logical address matches this.
    Logical(u32),
    /// The sender.
    Itself,
    /// Every processor.
    All,
    /// Every processor but the sender.
    Others,
}

/// One message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Whom it is for.
    pub to: Destination,
    /// What it asks.
    pub delivery: Delivery,
    /// Interrupt vector, or page number of a start-up.
    pub vector: u8,
    /// Level-triggered: the end of the interrupt is told to the I/O APIC.
    pub level: bool,
}

/// What a register write causes outside the local APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// A message to send.
    Send(Message),
    /// A level-triggered interrupt with this vector was finished.
    EndOfInterrupt(u8),
}
