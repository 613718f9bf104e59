//! Loads and stores of the guest: the software TLB and the fast path through it.

use crate::cpu::Cpu;
use crate::trap::Trap;

/// Entries of a TLB, a power of two.
pub const TLB_ENTRIES: usize = 4096;

/// A translation of one page, for one privilege.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct TlbEntry {
    /// Linear address of the page if it may be read, else a page that no address with this index lies in.
    pub read: u64,
    /// The same for writing. Never set for pages that hold decoded instructions, nor before the D bit is set:
    /// those writes take the slow path.
    pub write: u64,
    /// Host address of the page in RAM.
    pub host: *mut u8,
    /// Physical address of the page, and flags of the filler in the low bits (bit 0: global).
    pub phys: u64,
}

/// A direct-mapped TLB of RAM pages. Pages of devices are never entered.
#[derive(Debug)]
pub struct Tlb {
    /// By bits 12 and up of the linear address.
    pub entries: [TlbEntry; TLB_ENTRIES],
}

impl TlbEntry {
    /// The entry at `index` that matches nothing: the tags name a page with another index.
    pub const fn none(index: usize) -> TlbEntry {
        let nowhere = ((index ^ 1) as u64) << 12;
        TlbEntry { read: nowhere, write: nowhere, host: std::ptr::null_mut(), phys: 0 }
    }
}

impl Tlb {
    /// A TLB without translations.
    pub fn empty() -> Tlb {
        Tlb { entries: std::array::from_fn(TlbEntry::none) }
    }
}

/// Index of the entry for a linear address.
#[inline(always)]
pub fn tlb_slot(linear: u64) -> usize {
    (linear >> 12) as usize & (TLB_ENTRIES - 1)
}

/// What is done with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A data read.
    Read,
    /// A data write, or a read that a write will follow.
    Write,
    /// An instruction fetch.
    Fetch,
}

/// Integers that the guest loads and stores: `u8` to `u128`.
pub trait Width: Copy + Sized + 'static {
    /// Size in bytes.
    const BYTES: u64 = size_of::<Self>() as u64;
    /// Little-endian bytes to value; `bytes.len()` is `BYTES`.
    fn from_bytes(bytes: &[u8]) -> Self;
    /// Value to little-endian bytes; `bytes.len()` is `BYTES`.
    fn to_bytes(self, bytes: &mut [u8]);
}

macro_rules! width {
    ($($int:ty),*) => {$(
        impl Width for $int {
            #[inline]
            fn from_bytes(bytes: &[u8]) -> Self {
                let mut array = [0; size_of::<$int>()];
                array.copy_from_slice(bytes);
                <$int>::from_le_bytes(array)
            }
            #[inline]
            fn to_bytes(self, bytes: &mut [u8]) {
                bytes.copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}
width!(u8, u16, u32, u64, u128);

impl Cpu {
    /// The entry of the current TLB where a translation of `linear` would be.
    #[inline(always)]
    pub fn tlb_entry(&self, linear: u64) -> &TlbEntry {
        // SAFETY: `tlb` is one of `tlbs`, which live as long as `self` and are changed through `&mut self` only; a slot is
        // below the size.
        unsafe { (*self.tlb).entries.get_unchecked(tlb_slot(linear)) }
    }

    /// Loads from a linear address, at the current privilege.
    #[inline(always)]
    pub fn load<T: Width>(&mut self, linear: u64) -> Result<T, Trap> {
        match self.load_fast(linear) {
            Some(value) => Ok(value),
            None => self.load_slow(linear),
        }
    }

    /// Stores to a linear address, at the current privilege.
    #[inline(always)]
    pub fn store<T: Width>(&mut self, linear: u64, value: T) -> Result<(), Trap> {
        if self.store_fast(linear, value) { Ok(()) } else { self.store_slow(linear, value) }
    }

    /// [`Cpu::load`] if the TLB has the page; `None` says nothing about whether it faults.
    ///
    /// A handler that does only this, and leaves all else to a handler of its own that it calls last, needs no
    /// stack frame.
    #[inline(always)]
    pub fn load_fast<T: Width>(&self, linear: u64) -> Option<T> {
        let entry = self.tlb_entry(linear);
        let within = linear.wrapping_sub(entry.read);
        // SAFETY: the tag matched, so `host` is the page of RAM that the filler found there, and
        // `within + BYTES` does not pass its end. RAM outlives the TLB (`self.ram`).
        (within <= 4096 - T::BYTES)
            .then(|| unsafe { entry.host.add(within as usize).cast::<T>().read_unaligned() })
    }

    /// [`Cpu::store`] if the TLB has the page for writing; otherwise false, and nothing is done.
    #[inline(always)]
    pub fn store_fast<T: Width>(&mut self, linear: u64, value: T) -> bool {
        let entry = self.tlb_entry(linear);
        let within = linear.wrapping_sub(entry.write);
        let hit = within <= 4096 - T::BYTES;
        if hit {
            // SAFETY: as in `load_fast`; the write tag is only set where the guest may write.
            unsafe { entry.host.add(within as usize).cast::<T>().write_unaligned(value) };
        }
        hit
    }

    /// The host address of `len` bytes of RAM inside one page that may be written, if the TLB has it. For atomic
    /// read-modify-write ops: after [`Cpu::probe_write`], `None` means a device, a watched page or a page crossing.
    #[inline(always)]
    pub fn writable(&self, linear: u64, len: u64) -> Option<*mut u8> {
        let entry = self.tlb_entry(linear);
        let within = linear.wrapping_sub(entry.write);
        // SAFETY: the tag matched, so the sum stays inside the page at `host`.
        (within <= 4096 - len).then(|| unsafe { entry.host.add(within as usize) })
    }
}
