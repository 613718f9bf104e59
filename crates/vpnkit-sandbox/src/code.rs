//! Gives the memory of code and constants back that only the start of a process needed.
//!
//! Most code of a program that runs for weeks is used once: options, files, sockets. Its pages stay counted as the
//! process's until memory is short everywhere.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;

/// Where the code of this process and its constants are mapped, the libraries' included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code(Vec<Range<usize>>);

impl Code {
    /// Looks for it; to be called while there is a `/proc`.
    ///
    /// # Errors
    /// When there is none.
    pub fn find() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/self/smaps")?))
    }

    /// Reads proc_pid_smaps(5): mappings of files that may not be written, and of which no page differs from its file. Those
    /// that the linker changed and then protected (RELRO) are read-only too.
    fn parse(smaps: &str) -> Self {
        let mut found = Vec::new();
        let mut range = None;
        for line in smaps.lines() {
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("Anonymous:") if words.next() == Some("0") => found.extend(range.take()),
                Some(key) if key.ends_with(':') => {}
                _ => range = read_only_file(line),
            }
        }
        Self(found)
    }

    /// Unmaps its pages; those that are used again come back from the file, one by one.
    pub fn release(&self) {
        for range in &self.0 {
            let start = std::ptr::without_provenance_mut(range.start);
            // SAFETY: the range was mapped from a file, privately and not writable, and is never unmapped or made
            // writable: this process loads no libraries later. Its pages are as in the file, none was changed, and from
            // there they come back when they are used: MADV_DONTNEED of madvise(2). A refusal leaves them.
            unsafe { libc::madvise(start, range.len(), libc::MADV_DONTNEED) };
        }
    }
}

/// The addresses of a mapping, if it is a file's, private, and may be read but not written.
fn read_only_file(header: &str) -> Option<Range<usize>> {
    let mut words = header.split_ascii_whitespace();
    let (range, rights) = (words.next()?, words.next()?);
    let inode = words.nth(2)?;
    if !["r-xp", "r--p"].contains(&rights) || inode == "0" {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_what_is_of_a_file_and_was_never_changed() {
        let mapping = |header: &str, anonymous: u32| {
            format!("{header}\nSize: 4 kB\nRss: 4 kB\nAnonymous: {anonymous} kB\nVmFlags: rd mr\n")
        };
        let smaps = [
            mapping("5500000000-5500001000 r--p 00000000 08:01 1234 /usr/bin/vpnkit", 0),
            mapping("5500001000-5500009000 r-xp 00001000 08:01 1234 /usr/bin/vpnkit", 0),
            // What was relocated, and protected then.
            mapping("5500009000-550000a000 r--p 00009000 08:01 1234 /usr/bin/vpnkit", 4),
            mapping("550000a000-550000b000 rw-p 0000a000 08:01 1234 /usr/bin/vpnkit", 0),
            mapping("7f0000000000-7f0000001000 r-xp 00000000 00:00 0", 0),
            mapping("7f0000002000-7f0000003000 r-xp 00000000 00:00 0 [vdso]", 0),
            mapping("7f0000003000-7f0000004000 r--s 00000000 08:01 78 /var/lib/shared", 0),
            mapping("7f0000004000-7f0000005000 r-xp 00000000 08:01 77 /usr/lib/libc.so.6", 0),
        ];
        let expected = vec![
            0x55_0000_0000..0x55_0000_1000,
            0x55_0000_1000..0x55_0000_9000,
            0x7f00_0000_4000..0x7f00_0000_5000,
        ];
        assert_eq!(Code::parse(&smaps.concat()), Code(expected));
    }

    #[test]
    fn code_that_was_released_still_runs() {
        let code = Code::find().unwrap();
        assert!(!code.0.is_empty());
        code.release();
        assert_eq!(Code::find().unwrap(), code);
    }
}
