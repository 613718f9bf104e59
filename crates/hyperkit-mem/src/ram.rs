//! The mapping behind guest RAM and the regions it appears in.

use std::ptr::NonNull;

use crate::dirty::Dirty;
use crate::watch::Watch;
use crate::{GuestAddr, HIGH_START, LOW_END, PAGE_BYTES};

/// A run of guest-physical addresses backed by RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// First address.
    pub start: GuestAddr,
    /// Length in bytes, a multiple of the page size.
    pub bytes: u64,
    /// Where the region starts inside the host mapping, in bytes.
    pub(crate) offset: u64,
}

/// Why RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The size is zero, not a multiple of the page size, or beyond what a guest can address.
    #[error("{bytes} bytes of memory is not a whole number of pages between 1 MiB and 1 TiB")]
    Size {
        /// The size asked for.
        bytes: u64,
    },
    /// The host refused the mapping.
    #[error("the host cannot map {bytes} bytes for the guest")]
    Map {
        /// The size asked for.
        bytes: u64,
        /// What the host said.
        source: std::io::Error,
    },
}

/// The guest's RAM: zeroed, private to this process, shared between vCPUs and devices.
///
/// Host memory is committed as the guest touches it.
pub struct GuestRam {
    base: NonNull<u8>,
    bytes: u64,
    regions: Vec<Region>,
    watch: Watch,
    dirty: Dirty,
}

// SAFETY: the mapping lives as long as `self` and is only reached through raw pointers with volatile or
// atomic copies; concurrent access is the normal state of a machine's memory.
unsafe impl Send for GuestRam {}
// SAFETY: as for `Send`.
unsafe impl Sync for GuestRam {}

impl std::fmt::Debug for GuestRam {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestRam").field("regions", &self.regions).finish_non_exhaustive()
    }
}

impl GuestRam {
    /// Maps `bytes` of RAM at guest address 0, what exceeds 3 GiB from 4 GiB on.
    ///
    /// # Errors
    /// [`RamError::Size`] unless `bytes` is a multiple of 4096 from 1 MiB to 1 TiB; [`RamError::Map`] when the
    /// host has no room.
    pub fn new(bytes: u64) -> Result<GuestRam, RamError> {
        if !bytes.is_multiple_of(PAGE_BYTES) || !(1 << 20..=1 << 40).contains(&bytes) {
            return Err(RamError::Size { bytes });
        }
        let base = map(bytes).map_err(|source| RamError::Map { bytes, source })?;
        let low = bytes.min(LOW_END);
        let mut regions = vec![Region { start: GuestAddr(0), bytes: low, offset: 0 }];
        if bytes > low {
            regions.push(Region { start: GuestAddr(HIGH_START), bytes: bytes - low, offset: low });
        }
        Ok(GuestRam {
            base,
            bytes,
            regions,
            watch: Watch::new(bytes / PAGE_BYTES),
            dirty: Dirty::new(bytes / PAGE_BYTES),
        })
    }

    /// The regions, in ascending order.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Total size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The host pointer of `len` bytes of RAM at `addr`; `None` unless all of them lie in one region.
    ///
    /// The pointer is valid as long as `self`. Whoever writes through it must say so with
    /// [`GuestRam::mark_written`], and must never make a reference from it.
    #[inline]
    pub fn span(&self, addr: GuestAddr, len: u64) -> Option<NonNull<u8>> {
        let offset = self.offset(addr, len)?;
        // SAFETY: `offset + len <= self.bytes`, the length of the mapping at `base`.
        Some(unsafe { self.base.add(offset as usize) })
    }

    /// Where `len` bytes at `addr` lie in the mapping.
    #[inline]
    fn offset(&self, addr: GuestAddr, len: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let within = addr.0.checked_sub(region.start.0)?;
            (within < region.bytes && len <= region.bytes - within).then_some(region.offset + within)
        })
    }

    /// The number of the page of RAM that holds `addr`, dense from 0; `None` outside RAM.
    #[inline]
    pub fn page_index(&self, addr: GuestAddr) -> Option<usize> {
        self.offset(addr, 1).map(|offset| (offset / PAGE_BYTES) as usize)
    }

    /// The host pointer of a page of RAM by its number, as [`GuestRam::page_index`] gives it; what is said of
    /// [`GuestRam::span`] holds for it.
    #[inline]
    pub fn page_host(&self, page: usize) -> Option<NonNull<u8>> {
        let offset = (page as u64).checked_mul(PAGE_BYTES).filter(|offset| *offset < self.bytes)?;
        // SAFETY: below the length of the mapping at `base`.
        Some(unsafe { self.base.add(offset as usize) })
    }

    /// The record of pages that were written; see [`crate::dirty`].
    #[inline]
    pub fn dirty(&self) -> &Dirty {
        &self.dirty
    }

    /// The watched pages; see [`crate::watch`].
    pub fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Says that `len` bytes at `addr` were written through a pointer of [`GuestRam::span`].
    pub fn mark_written(&self, addr: GuestAddr, len: u64) {
        if len == 0 {
            return;
        }
        let Some(offset) = self.offset(addr, len) else { return };
        let (first, last) = (offset / PAGE_BYTES, (offset + len - 1) / PAGE_BYTES);
        self.dirty.mark_all(first, last);
        self.watch.written(first, last);
    }
}

impl Drop for GuestRam {
    fn drop(&mut self) {
        // SAFETY: `base` and `bytes` are those of the mapping made in `new`; nothing points into it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes as usize) };
    }
}

fn map(bytes: u64) -> std::io::Result<NonNull<u8>> {
    let len = usize::try_from(bytes).map_err(|_| std::io::ErrorKind::OutOfMemory)?;
    // SAFETY: an anonymous mapping at an address of the kernel's choosing touches nothing that exists.
    let pointer = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if pointer == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    NonNull::new(pointer.cast()).ok_or_else(|| std::io::ErrorKind::OutOfMemory.into())
}
