//! Where randomness comes from.

use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

/// A source of random bytes. Does not block.
pub trait EntropySource: Send {
    /// Fills `bytes`.
    ///
    /// # Errors
    /// When the source has nothing to give; the device then stops.
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()>;
}

/// The host kernel's generator, `getrandom(2)`.
#[derive(Debug, Default)]
pub struct HostEntropy;

impl EntropySource for HostEntropy {
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < bytes.len() {
            match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
                Ok(n) => filled += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
