//! What a device is to the bus, to the interrupt controller and to a snapshot.

/// Registers behind an address range.
///
/// Offsets are relative to the start of the range and `data` lies wholly inside it. The guest chooses offset,
/// length (1, 2, 4 or 8) and contents: no access may panic, block, or allocate without limit.
pub trait Device: Send {
    /// Fills `data` with what the guest reads at `offset`. Parts without a register read as the device sees fit.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Takes what the guest writes at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// State that survives a snapshot.
///
/// `save` is called while no vCPU runs. The bytes are the device's own, versioned by their first byte;
/// `restore` gets them back on a freshly made device of the same configuration, perhaps from a hostile file.
pub trait Saved {
    /// The state as bytes.
    fn save(&self) -> Vec<u8>;

    /// Takes over a state that `save` made.
    ///
    /// # Errors
    /// [`RestoreError`] when the bytes are not such a state; the device is then as it was before.
    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError>;
}

/// Why a saved state was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the saved state of {device} cannot be used: {why}")]
pub struct RestoreError {
    /// Which device refused.
    pub device: &'static str,
    /// What is wrong with the bytes.
    pub why: String,
}

/// One input of the interrupt controller. May be called from any thread, never blocks for long.
pub trait InterruptLine: Send + Sync {
    /// Drives the line. An edge-triggered input fires on the change from low to high.
    fn set(&self, high: bool);

    /// A pulse: high, then low. What an edge-triggered device does to interrupt once.
    fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}
