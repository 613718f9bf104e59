//! The chips of the board: serial port, clock, power.
//!
//! Each is a [`hyperkit_bus::Device`] that knows neither its address nor the machine around it.

#![forbid(unsafe_code)]

mod power;
mod rtc;
mod serial;

pub use power::{I8042Reset, Power, PowerCodes, PowerEvent};
pub use rtc::Rtc;
pub use serial::Serial;
