//! A map from disjoint address ranges to devices.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crate::Device;

type Shared = Arc<Mutex<dyn Device>>;

/// Why a range could not be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes at {start:#x} are empty, out of range or overlap another device")]
pub struct MapError {
    /// Start of the refused range.
    pub start: u64,
    /// Its length.
    pub bytes: u64,
}

/// Disjoint ranges and the device behind each.
#[derive(Default)]
pub struct AddressMap {
    /// By start address: (length, device).
    ranges: BTreeMap<u64, (u64, Shared)>,
}

impl AddressMap {
    /// Puts `device` behind `bytes` addresses from `start`.
    ///
    /// # Errors
    /// [`MapError`] when the range is empty, wraps, or overlaps one that is there.
    pub fn insert(&mut self, start: u64, bytes: u64, device: Shared) -> Result<(), MapError> {
        let refused = MapError { start, bytes };
        let last = bytes.checked_sub(1).and_then(|n| start.checked_add(n)).ok_or(refused.clone())?;
        if let Some((other, (len, _))) = self.ranges.range(..=last).next_back()
            && other + (len - 1) >= start
        {
            return Err(refused);
        }
        self.ranges.insert(start, (bytes, device));
        Ok(())
    }

    /// The device at `addr` and the offset in it; `None` unless all `len` bytes lie in its range.
    pub fn try_find(&self, addr: u64, len: u64) -> Option<(&Shared, u64)> {
        let (start, (bytes, device)) = self.ranges.range(..=addr).next_back()?;
        let offset = addr - start;
        (offset < *bytes && len <= bytes - offset).then_some((device, offset))
    }
}
