//! How much memory and how many descriptors all connections of a device may take together.

use std::sync::{Arc, Mutex, MutexGuard};

/// Connections at one time, those included that only wait for the host to take their last bytes.
pub const CONNECTIONS_MAX: usize = 8192;

/// Largest receive window of a connection: what the host holds for a reader that does not read.
pub const WINDOW_BYTES_MAX: u32 = 256 << 10;

/// Smallest one, given to connections beyond [`WINDOWS_BYTES`].
pub const WINDOW_BYTES_MIN: u32 = 4 << 10;

/// What the windows larger than [`WINDOW_BYTES_MIN`] may add up to.
///
/// So the device never holds more than `WINDOWS_BYTES + CONNECTIONS_MAX * WINDOW_BYTES_MIN`, 96 MiB, and that
/// only of a guest that writes everywhere and hosts that read nowhere.
pub const WINDOWS_BYTES: u64 = 64 << 20;

/// What is not claimed.
#[derive(Debug)]
pub(super) struct Budget {
    free: Mutex<Free>,
}

#[derive(Debug)]
struct Free {
    bytes: u64,
    connections: usize,
}

/// A connection's part, given back when dropped.
#[derive(Debug)]
pub(super) struct Claim {
    budget: Arc<Budget>,
    /// Receive window in bytes.
    pub(super) window: u32,
    charged: u64,
}

impl Budget {
    pub(super) fn new() -> Budget {
        Budget { free: Mutex::new(Free { bytes: WINDOWS_BYTES, connections: CONNECTIONS_MAX }) }
    }

    /// Room for one connection: a 16th of what is left, within the limits. `None` when there are too many.
    pub(super) fn claim(self: &Arc<Budget>) -> Option<Claim> {
        let mut free = self.lock();
        free.connections = free.connections.checked_sub(1)?;
        let share = (free.bytes / 16).min(u64::from(WINDOW_BYTES_MAX)) as u32 & !0xfff;
        let charged = if share > WINDOW_BYTES_MIN { u64::from(share) } else { 0 };
        free.bytes -= charged;
        Some(Claim { budget: Arc::clone(self), window: share.max(WINDOW_BYTES_MIN), charged })
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        self.free.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut free = self.budget.lock();
        free.bytes += self.charged;
        free.connections += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_shrink_with_the_number_of_connections_and_recover() {
        let budget = Arc::new(Budget::new());
        let claims: Vec<Claim> = std::iter::from_fn(|| budget.claim()).collect();
        assert_eq!(claims.len(), CONNECTIONS_MAX);
        assert_eq!(claims[0].window, WINDOW_BYTES_MAX);
        assert_eq!(claims[CONNECTIONS_MAX - 1].window, WINDOW_BYTES_MIN);
        let total: u64 = claims.iter().map(|claim| u64::from(claim.window)).sum();
        assert!(total <= WINDOWS_BYTES + CONNECTIONS_MAX as u64 * u64::from(WINDOW_BYTES_MIN));
        drop(claims);
        assert_eq!(budget.claim().unwrap().window, WINDOW_BYTES_MAX);
    }
}
