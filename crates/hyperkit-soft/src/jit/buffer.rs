//! Memory for generated code: one piece of memory mapped twice, once to write and once to execute, so that no
//! mapping is ever both.
//!
//! Not done: code from other threads. A buffer belongs to one processor, whose thread writes and executes it.

use std::io;

/// Where code begins is a multiple of this.
const ALIGNMENT: usize = 16;

/// Memory that code is put into and executed from.
#[derive(Debug)]
pub struct CodeBuffer {
    /// The mapping that is written.
    writable: *mut u8,
    /// The same memory as it is executed.
    executable: *const u8,
    bytes: usize,
    used: usize,
}

// SAFETY: the mappings belong to the buffer alone and go where it goes.
unsafe impl Send for CodeBuffer {}

impl CodeBuffer {
    /// A buffer of `bytes` bytes, rounded up to whole pages; the host gives the memory when it is written.
    ///
    /// # Errors
    /// Where the host lets nobody have memory executed, as hardened systems do.
    pub fn new(bytes: usize) -> io::Result<CodeBuffer> {
        let bytes = bytes.max(1).next_multiple_of(4096);
        let (writable, executable) = map(bytes)?;
        Ok(CodeBuffer { writable, executable, bytes, used: 0 })
    }

    /// Where the next code that is put here will begin.
    pub fn next(&self) -> *const u8 {
        self.executable.wrapping_add(self.used)
    }

    /// Puts code at [`CodeBuffer::next`] and says where that is; `None` if it does not fit.
    pub fn put(&mut self, code: &[u8]) -> Option<*const u8> {
        let end = self.used.checked_add(code.len()).filter(|end| *end <= self.bytes)?;
        let at = self.next();
        // SAFETY: `code` fits between `used` and the end of the mapping, which nobody has a reference to.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(self.used), code.len()) };
        self.used = end.next_multiple_of(ALIGNMENT).min(self.bytes);
        serialize();
        Some(at)
    }

    /// Replaces bytes of code that was put here.
    ///
    /// # Panics
    /// If they are not all in the buffer.
    pub fn patch(&mut self, at: *const u8, code: &[u8]) {
        let offset = (at as usize).wrapping_sub(self.executable as usize);
        assert!(offset <= self.used && code.len() <= self.used - offset, "a patch lies in the code");
        // SAFETY: inside the mapping, says the check.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.writable.add(offset), code.len()) };
        serialize();
    }

    /// Bytes that are taken.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Bytes that are left.
    pub fn free(&self) -> usize {
        self.bytes - self.used
    }

    /// Whether an address is that of code in the buffer.
    pub fn contains(&self, at: *const u8) -> bool {
        (at as usize).wrapping_sub(self.executable as usize) < self.used
    }

    /// Forgets all code but the first `keep` bytes.
    pub fn truncate(&mut self, keep: usize) {
        self.used = self.used.min(keep.next_multiple_of(ALIGNMENT));
    }
}

impl Drop for CodeBuffer {
    fn drop(&mut self) {
        for start in [self.writable, self.executable.cast_mut()] {
            // SAFETY: mapped with this length by `map`, and nothing points into it any more.
            unsafe { libc::munmap(start.cast(), self.bytes) };
        }
    }
}

/// Maps `bytes` bytes of fresh memory twice.
#[cfg(target_os = "linux")]
fn map(bytes: usize) -> io::Result<(*mut u8, *const u8)> {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    // SAFETY: a system call on a constant string.
    let fd = unsafe { libc::memfd_create(c"translated code".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is fresh and ours.
    let memory = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a system call on our descriptor.
    if unsafe { libc::ftruncate(memory.as_raw_fd(), bytes as libc::off_t) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let map = |protection| {
        let fd = memory.as_raw_fd();
        // SAFETY: a new mapping where the kernel chooses.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, fd, 0) };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(at.cast::<u8>()) }
    };
    let writable = map(libc::PROT_READ | libc::PROT_WRITE)?;
    let executable = map(libc::PROT_READ | libc::PROT_EXEC).inspect_err(|_| {
        // SAFETY: mapped just now, and not used yet.
        unsafe { libc::munmap(writable.cast(), bytes) };
    })?;
    Ok((writable, executable.cast_const()))
}

#[cfg(not(target_os = "linux"))]
fn map(_bytes: usize) -> io::Result<(*mut u8, *const u8)> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Has the processor fetch anew what was written through another linear address (SDM vol. 3A §12.6).
#[cfg(target_arch = "x86_64")]
fn serialize() {
    // SAFETY: IRETQ, which serializes and (unlike CPUID) is no exit in a virtual machine, goes to the next instruction
    // with the stack pointer, flags and segments as they are. The red zone is stepped over.
    unsafe {
        std::arch::asm!(
            "mov {stack}, rsp",
            "sub rsp, 128",
            "mov {at:e}, ss",
            "push {at}",
            "push {stack}",
            "pushfq",
            "mov {at:e}, cs",
            "push {at}",
            "lea {at}, [rip + 2f]",
            "push {at}",
            "iretq",
            "2:",
            stack = out(reg) _,
            at = out(reg) _,
        );
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn serialize() {}

#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
mod tests {
    use super::*;

    fn call(at: *const u8) -> u32 {
        // SAFETY: the tests put functions of this type there.
        let function: extern "C" fn() -> u32 = unsafe { std::mem::transmute(at) };
        function()
    }

    #[test]
    fn code_runs_and_can_be_replaced() {
        let mut buffer = CodeBuffer::new(4096).expect("this host lets memory be executed");
        let seven = buffer.put(&[0xb8, 7, 0, 0, 0, 0xc3]).expect("room for 6 bytes"); // mov eax, 7; ret
        let eight = buffer.put(&[0xb8, 8, 0, 0, 0, 0xc3]).expect("room for 6 more");
        assert_eq!((call(seven), call(eight)), (7, 8));
        for value in 0..100u32 {
            buffer.patch(seven.wrapping_add(1), &value.to_le_bytes());
            assert_eq!(call(seven), value);
        }
        assert_eq!(call(eight), 8);
        assert!(buffer.contains(eight) && !buffer.contains(buffer.next()));
    }

    #[test]
    fn no_mapping_is_both_writable_and_executable() {
        let buffer = CodeBuffer::new(4096).expect("this host lets memory be executed");
        let maps = std::fs::read_to_string("/proc/self/maps").expect("procfs");
        let ours: Vec<&str> = maps.lines().filter(|line| line.contains("translated code")).collect();
        assert!(ours.len() >= 2, "{maps}");
        assert!(ours.iter().all(|line| !line.contains("rwx")), "{ours:?}");
        drop(buffer);
    }

    #[test]
    fn a_full_buffer_says_so_and_can_be_emptied() {
        let mut buffer = CodeBuffer::new(1).expect("this host lets memory be executed");
        assert!(buffer.put(&[0xcc; 4000]).is_some());
        assert!(buffer.put(&[0xcc; 200]).is_none());
        buffer.truncate(0);
        assert_eq!((buffer.used(), buffer.free()), (0, 4096));
        assert!(buffer.put(&[0xcc; 4096]).is_some());
        assert!(buffer.put(&[0xcc]).is_none());
    }
}
