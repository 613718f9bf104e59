//! What the heap keeps of the memory that was used.
#![allow(unsafe_code)]

/// Bytes from which on a buffer has a mapping of its own: what glibc begins with.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_BYTES_MIN: libc::c_int = 128 * 1024;

/// Makes the heap give large buffers back to the system as soon as they are free.
///
/// glibc does so with the first, and takes its size for usual then: later ones it keeps (`M_MMAP_THRESHOLD` of mallopt(3)). A
/// process that waits for weeks would go on to hold the buffers of its fastest minute. Other C libraries keep none.
pub fn return_large_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it sets a number of the allocator's, under its lock, whoever allocates meanwhile. A refusal changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN);
    }
}
