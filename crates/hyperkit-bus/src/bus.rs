//! The board as a vCPU sees it: ports and memory-mapped registers.

use std::sync::PoisonError;

use crate::AddressMap;

/// Both address spaces of a board. Complete before the first vCPU runs, shared by all of them afterwards.
#[derive(Default)]
pub struct Bus {
    /// I/O ports, 0 to 0xffff.
    pub ports: AddressMap,
    /// Memory-mapped registers, by guest-physical address.
    pub mmio: AddressMap,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Bus")
    }
}

impl Bus {
    /// Reads from a port; all ones where no device answers.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        read(&self.ports, u64::from(port), data);
    }

    /// Writes to a port; dropped where no device answers.
    pub fn port_write(&self, port: u16, data: &[u8]) {
        write(&self.ports, u64::from(port), data);
    }

    /// Reads a memory-mapped register; all ones where no device answers.
    pub fn mmio_read(&self, addr: u64, data: &mut [u8]) {
        read(&self.mmio, addr, data);
    }

    /// Writes a memory-mapped register; dropped where no device answers.
    pub fn mmio_write(&self, addr: u64, data: &[u8]) {
        write(&self.mmio, addr, data);
    }
}

fn read(map: &AddressMap, addr: u64, data: &mut [u8]) {
    match map.try_find(addr, data.len() as u64) {
        Some((device, offset)) => device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data),
        None => data.fill(0xff),
    }
}

fn write(map: &AddressMap, addr: u64, data: &[u8]) {
    if let Some((device, offset)) = map.try_find(addr, data.len() as u64) {
        device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::Device;

    struct Echo(u8);

    impl Device for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.0 = data[0] - offset as u8;
        }
    }

    fn bus() -> Bus {
        let mut bus = Bus::default();
        bus.ports.insert(0x3f8, 8, Arc::new(Mutex::new(Echo(1)))).unwrap();
        bus
    }

    #[test]
    fn device_sees_offsets() {
        let bus = bus();
        bus.port_write(0x3fa, &[12]);
        let mut byte = [0];
        bus.port_read(0x3fb, &mut byte);
        assert_eq!(byte, [13]);
    }

    #[test]
    fn access_that_no_device_claims_reads_all_ones() {
        let mut word = [0; 2];
        bus().port_read(0x3ff, &mut word); // its second byte lies past the device
        assert_eq!(word, [0xff; 2]);
    }

    #[test]
    fn overlapping_ranges_are_refused() {
        let mut bus = bus();
        for (start, bytes) in [(0x3f0, 9), (0x3ff, 1), (0x3f8, 8), (0x400, 0), (u64::MAX, 2)] {
            assert!(bus.ports.insert(start, bytes, Arc::new(Mutex::new(Echo(0)))).is_err(), "{start:#x}");
        }
        bus.ports.insert(0x400, 1, Arc::new(Mutex::new(Echo(0)))).unwrap();
    }
}
