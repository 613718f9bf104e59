//! The driver's side, for tests of queues, transports and devices. Panics where a test made a mistake.

mod interrupt;
mod ring;

pub use interrupt::RecordingInterrupt;
pub use ring::{Ring, Used};
