//! HyperKit as a library: a configuration becomes a machine, the machine runs on threads of this process.
//!
//! ```no_run
//! use hyperkit::{Image, Machine, MachineConfig};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let kernel = Image::from_file(std::fs::File::open("vmlinux")?)?;
//! let mut config = MachineConfig::new(kernel);
//! config.cmdline = "console=ttyS0".to_owned();
//! config.serial = Box::new(|bytes| print!("{}", String::from_utf8_lossy(bytes)));
//! let machine = Machine::build(config)?;
//! machine.start()?;
//! let outcome = machine.wait();
//! # Ok(()) }
//! ```
//!
//! Any number of machines live side by side. Nothing here prints, exits or keeps state of the process.

#![forbid(unsafe_code)]

mod board;
mod config;
mod engine;
mod lifecycle;
mod machine;
mod measure;

pub use config::{EngineChoice, MachineConfig, SerialSink};
pub use engine::best_engine;
pub use hyperkit_boot::{BootError, Image};
pub use hyperkit_devices as devices;
pub use hyperkit_hv::{EngineKind, VcpuError, VmError, X86State};
pub use hyperkit_mem::GuestRam;
pub use hyperkit_virtio::VirtioDevice;
pub use lifecycle::{Outcome, Stopper};
pub use machine::{BuildError, Counter, Machine, StartError};
pub use measure::measure;
