//! Local APIC and I/O APIC for engines that have none.
//!
//! - [`LocalApic`]: one processor's interrupt requests, priorities and timer (SDM vol. 3A ch. 11);
//! - [`IoApic`]: 24 inputs and where each goes (82093AA);
//! - [`ApicSet`]: all of a machine together, with the routing of messages between them.
//!
//! Nothing here reads a clock or has a thread: time is an argument, in ticks of the guest's time-stamp counter, and
//! what a register write causes elsewhere is returned as an [`Effect`]. Not modelled: the 8259 behind LINT0, thermal,
//! performance-counter and machine-check interrupts (their registers exist and hold what is written), SMI, arbitration.

#![forbid(unsafe_code)]

mod io;
mod local;
mod message;
mod set;

pub use io::{IoApic, PINS};
pub use local::{BASE_ENABLE, BASE_EXTENDED, Events, LocalApic, NoSuchRegister};
pub use message::{Delivery, Destination, Effect, Message};
pub use set::{ApicSet, SavedSet, Wake};
