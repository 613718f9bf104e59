//! Copies between host and guest memory, each checked against the regions.

use std::sync::atomic::{AtomicU16, Ordering, fence};

use crate::{GuestAddr, GuestRam};

/// An access that does not lie wholly in RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at {addr} are not in the guest's memory")]
pub struct OutOfRam {
    /// First address of the access.
    pub addr: GuestAddr,
    /// Its length in bytes.
    pub len: u64,
}

impl GuestRam {
    /// Copies from guest memory into `bytes`.
    ///
    /// # Errors
    /// [`OutOfRam`] unless all of it lies in one region; then nothing was copied.
    pub fn read(&self, addr: GuestAddr, bytes: &mut [u8]) -> Result<(), OutOfRam> {
        let len = bytes.len() as u64;
        let host = self.span(addr, len).ok_or(OutOfRam { addr, len })?;
        // SAFETY: `span` checked that `len` bytes from `host` are mapped; `bytes` is a distinct allocation.
        // The guest may write concurrently: a torn value is what a real device would see too.
        unsafe { std::ptr::copy_nonoverlapping(host.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies `bytes` into guest memory.
    ///
    /// # Errors
    /// [`OutOfRam`] unless all of it lies in one region; then nothing was copied.
    pub fn write(&self, addr: GuestAddr, bytes: &[u8]) -> Result<(), OutOfRam> {
        let len = bytes.len() as u64;
        let host = self.span(addr, len).ok_or(OutOfRam { addr, len })?;
        // SAFETY: as in `read`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), host.as_ptr(), bytes.len()) };
        self.mark_written(addr, len);
        Ok(())
    }

    /// Fills `len` bytes with zeros.
    ///
    /// # Errors
    /// [`OutOfRam`] unless all of it lies in one region.
    pub fn zero(&self, addr: GuestAddr, len: u64) -> Result<(), OutOfRam> {
        let host = self.span(addr, len).ok_or(OutOfRam { addr, len })?;
        // SAFETY: `span` checked that `len` bytes from `host` are mapped.
        unsafe { std::ptr::write_bytes(host.as_ptr(), 0, len as usize) };
        self.mark_written(addr, len);
        Ok(())
    }

    /// Reads a little-endian `u16` with acquire order: what its writer published before is visible after.
    ///
    /// # Errors
    /// [`OutOfRam`], also when `addr` is odd.
    pub fn load_u16(&self, addr: GuestAddr) -> Result<u16, OutOfRam> {
        let cell = self.cell_u16(addr)?;
        // SAFETY: `cell_u16` checked bounds and alignment; atomics may be shared with the guest.
        let value = unsafe { AtomicU16::from_ptr(cell) }.load(Ordering::Acquire);
        Ok(u16::from_le(value))
    }

    /// Writes a little-endian `u16` with release order, then a full fence, as rings need between publishing an
    /// index and reading the other side's suppression flag (virtio 1.2 §2.7.13.4).
    ///
    /// # Errors
    /// [`OutOfRam`], also when `addr` is odd.
    pub fn store_u16(&self, addr: GuestAddr, value: u16) -> Result<(), OutOfRam> {
        let cell = self.cell_u16(addr)?;
        // SAFETY: `cell_u16` checked bounds and alignment; atomics may be shared with the guest.
        unsafe { AtomicU16::from_ptr(cell) }.store(value.to_le(), Ordering::Release);
        fence(Ordering::SeqCst);
        self.mark_written(addr, 2);
        Ok(())
    }

    /// Reads a little-endian `u32`.
    ///
    /// # Errors
    /// [`OutOfRam`].
    pub fn read_u32(&self, addr: GuestAddr) -> Result<u32, OutOfRam> {
        let mut bytes = [0; 4];
        self.read(addr, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Reads a little-endian `u64`.
    ///
    /// # Errors
    /// [`OutOfRam`].
    pub fn read_u64(&self, addr: GuestAddr) -> Result<u64, OutOfRam> {
        let mut bytes = [0; 8];
        self.read(addr, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn cell_u16(&self, addr: GuestAddr) -> Result<*mut u16, OutOfRam> {
        if !addr.0.is_multiple_of(2) {
            return Err(OutOfRam { addr, len: 2 });
        }
        let host = self.span(addr, 2).ok_or(OutOfRam { addr, len: 2 })?;
        Ok(host.as_ptr().cast())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{HIGH_START, LOW_END};

    #[test]
    fn bytes_come_back_as_written() {
        let ram = GuestRam::new(1 << 20).unwrap();
        ram.write(GuestAddr(0x1fff), &[1, 2, 3]).unwrap();
        let mut bytes = [0; 3];
        ram.read(GuestAddr(0x1fff), &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3]);
    }

    #[test]
    fn access_across_the_end_is_refused_whole() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let addr = GuestAddr((1 << 20) - 1);
        assert_eq!(ram.write(addr, &[1, 2]), Err(OutOfRam { addr, len: 2 }));
        assert_eq!(
            ram.read(GuestAddr(u64::MAX), &mut [0; 2]),
            Err(OutOfRam { addr: GuestAddr(u64::MAX), len: 2 })
        );
    }

    #[test]
    fn memory_over_three_gibibytes_continues_at_four() {
        let ram = GuestRam::new(LOW_END + (1 << 20)).unwrap();
        assert!(ram.write(GuestAddr(LOW_END), &[1]).is_err());
        ram.write(GuestAddr(HIGH_START), &[7]).unwrap();
        assert_eq!(ram.page_index(GuestAddr(HIGH_START)), Some((LOW_END / 4096) as usize));
    }

    #[test]
    fn a_write_to_a_watched_page_is_told_once() {
        let ram = GuestRam::new(1 << 20).unwrap();
        ram.watch().add(3, 0);
        ram.watch().add(3, 2);
        ram.write(GuestAddr(0x2ffe), &[0; 4]).unwrap();
        ram.write(GuestAddr(0x5000), &[0; 4]).unwrap();
        assert!(ram.watch().pending(0) && !ram.watch().pending(1));
        assert_eq!(ram.watch().take(0), vec![3]);
        assert!(!ram.watch().pending(0));
        assert_eq!(ram.watch().take(2), vec![3], "each watcher is told");
        ram.watch().written_by(3, 2);
        assert!(ram.watch().pending(0) && !ram.watch().pending(2), "not of its own writes");
    }
}
