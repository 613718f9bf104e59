//! Gives the memory of code back that only the start of a process needed.
//!
//! Most code of a program that runs for weeks is used once: options, files, sockets. Its pages stay counted as the
//! process's until memory is short everywhere.
#![allow(unsafe_code)]

use std::io;
use std::ops::Range;

/// Where the code of this process is mapped, the libraries' included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Code(Vec<Range<usize>>);

impl Code {
    /// Looks for it; to be called while there is a `/proc`.
    ///
    /// # Errors
    /// When there is none.
    pub fn find() -> io::Result<Self> {
        Ok(Self::parse(&std::fs::read_to_string("/proc/self/maps")?))
    }

    /// Reads proc_pid_maps(5): mappings of files that may be executed and not written.
    fn parse(maps: &str) -> Self {
        let code = |line: &str| {
            let mut words = line.split_ascii_whitespace();
            let (range, rights) = (words.next()?, words.next()?);
            let inode = words.nth(2)?;
            if rights != "r-xp" || inode == "0" {
                return None;
            }
            let (start, end) = range.split_once('-')?;
            Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
        };
        Self(maps.lines().filter_map(code).collect())
    }

    /// Unmaps its pages; those that are used again come back from the file, one by one.
    pub fn release(&self) {
        for range in &self.0 {
            let start = std::ptr::without_provenance_mut(range.start);
            // SAFETY: the range was mapped from a file, privately, executable and not writable, and code is never
            // unmapped: this process loads no libraries later. Its pages are as in the file, from where they come back
            // when they are used: MADV_DONTNEED of madvise(2). A refusal leaves them.
            unsafe { libc::madvise(start, range.len(), libc::MADV_DONTNEED) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_what_may_be_executed_and_is_of_a_file() {
        let maps = "\
5500000000-5500001000 r--p 00000000 08:01 1234 /usr/bin/vpnkit
5500001000-5500009000 r-xp 00001000 08:01 1234 /usr/bin/vpnkit
5500009000-550000a000 rw-p 00009000 08:01 1234 /usr/bin/vpnkit
7f0000000000-7f0000001000 rwxp 00000000 00:00 0
7f0000002000-7f0000003000 r-xp 00000000 00:00 0 [vdso]
7f0000004000-7f0000005000 r-xp 00000000 08:01 77 /usr/lib/libc.so.6
";
        let expected = vec![0x55_0000_1000..0x55_0000_9000, 0x7f00_0000_4000..0x7f00_0000_5000];
        assert_eq!(Code::parse(maps), Code(expected));
    }

    #[test]
    fn code_that_was_released_still_runs() {
        let code = Code::find().unwrap();
        assert!(!code.0.is_empty());
        code.release();
        assert_eq!(Code::find().unwrap(), code);
    }
}
