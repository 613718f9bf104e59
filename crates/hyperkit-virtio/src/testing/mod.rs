//! The driver's side, for tests of queues, transports and devices. Panics where a test made a mistake.

mod driver;
mod interrupt;
mod ring;

pub use driver::{CountingLine, Driver};
pub use interrupt::RecordingInterrupt;
pub use ring::{Ring, Used};
