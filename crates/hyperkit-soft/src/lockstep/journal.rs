//! What a compared stretch of code writes: enough to take it back and to hold two executions of it against one another.
//!
//! While the interpreter runs, no TLB entry allows writes, so that every store takes the slow path and is noted here byte
//! for byte. While the translation runs, the pages that the interpreter wrote are open to it, and no others.

use std::cell::Cell;

/// Bytes of a page.
const PAGE: usize = 4096;

/// Bits of a page-table entry that a page walk sets: A and D.
const WALK_BITS: u8 = 0x60;

/// Who executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// An instruction that is not compared.
    Off,
    /// The interpreter.
    Interpreter,
    /// The translation.
    Translation,
}

/// Bytes that were written.
#[derive(Debug, Clone, Copy)]
struct Written {
    host: *mut u8,
    len: usize,
    /// Where their former value is in [`Journal::bytes`].
    at: usize,
}

/// A page that the interpreter may have written.
#[derive(Debug, Clone, Copy)]
pub struct Opened {
    /// Linear address.
    pub linear: u64,
    host: *mut u8,
}

/// A copy of a page of RAM.
#[derive(Debug)]
struct Copied {
    host: *mut u8,
    /// As the interpreter left it.
    expected: Box<[u8; PAGE]>,
}

/// A byte that the two left different.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Differs {
    /// Linear address; none in a page that the interpreter did not write.
    pub linear: Option<u64>,
    /// What the interpreter left.
    pub interpreted: u8,
    /// What the translation left.
    pub translated: u8,
}

/// See the module.
#[derive(Debug)]
pub struct Journal {
    /// Who executes now.
    pub phase: Phase,
    /// What the interpreter wrote, then what the translation wrote on the slow path.
    written: Vec<Written>,
    /// How many of them are the interpreter's.
    turned: usize,
    bytes: Vec<u8>,
    opened: Vec<Opened>,
    copies: Vec<Copied>,
    /// Copies that may be used again.
    spare: Vec<Copied>,
    /// Page walks that set A or D bits since the interpreter began.
    pub walks: Cell<u32>,
    /// The translation wrote a page that the interpreter did not.
    stray: bool,
    /// Bytes that changed in an earlier try, though nobody but a device should have changed them.
    foreign: Vec<(*mut u8, u8)>,
    /// Room for a page that is looked at.
    now: Box<[u8; PAGE]>,
    /// Room for what the interpreter left where it wrote.
    left: Vec<u8>,
}

impl Default for Journal {
    fn default() -> Journal {
        Journal {
            phase: Phase::Off,
            written: Vec::new(),
            turned: 0,
            bytes: Vec::new(),
            opened: Vec::new(),
            copies: Vec::new(),
            spare: Vec::new(),
            walks: Cell::new(0),
            stray: false,
            foreign: Vec::new(),
            now: Box::new([0; PAGE]),
            left: Vec::new(),
        }
    }
}

fn page_of(host: *mut u8) -> *mut u8 {
    host.wrapping_sub(host.addr() % PAGE)
}

/// Reads bytes of guest RAM.
fn read(host: *mut u8, bytes: &mut [u8]) {
    // SAFETY: the journal is told of addresses in pages of RAM only, `bytes` do not pass the page's end, and RAM outlives
    // the processor whose journal this is. Nobody has a reference to guest memory.
    unsafe { std::ptr::copy_nonoverlapping(host, bytes.as_mut_ptr(), bytes.len()) };
}

/// Whether a page of RAM has these bytes.
fn holds(host: *mut u8, bytes: &[u8; PAGE]) -> bool {
    let (parts, _) = bytes.as_chunks::<64>();
    parts.iter().enumerate().all(|(n, part)| {
        // SAFETY: as in `read`; 64 bytes at a multiple of 64 lie in the page.
        let there = unsafe { host.wrapping_add(64 * n).cast::<[u8; 64]>().read() };
        there == *part
    })
}

/// Writes one byte of guest RAM.
fn write(host: *mut u8, byte: u8) {
    // SAFETY: as in `read`.
    unsafe { host.write_volatile(byte) };
}

impl Journal {
    /// The interpreter begins.
    pub fn begin(&mut self) {
        self.phase = Phase::Interpreter;
        self.written.clear();
        self.turned = 0;
        self.bytes.clear();
        self.opened.clear();
        self.spare.append(&mut self.copies);
        self.walks.set(0);
        self.stray = false;
    }

    /// `len` bytes inside a page of RAM are about to be written.
    pub fn will_write(&mut self, host: *mut u8, len: usize) {
        if self.phase == Phase::Translation && !self.is_open(host) {
            self.stray = true;
        }
        if self.phase != Phase::Off {
            let at = self.bytes.len();
            self.bytes.resize(at + len, 0);
            read(host, &mut self.bytes[at..]);
            self.written.push(Written { host, len, at });
        }
    }

    /// The page of RAM at `linear` was found fit to be written.
    pub fn open(&mut self, linear: u64, host: *mut u8) {
        let (linear, host) = (linear & !(PAGE as u64 - 1), page_of(host));
        let known = self.opened.iter().any(|page| page.linear == linear);
        if self.phase == Phase::Interpreter && !known {
            self.opened.push(Opened { linear, host });
        }
    }

    /// Whether the TLB may have the page at `linear` for writing.
    pub fn may_open(&self, linear: u64) -> bool {
        self.phase == Phase::Translation && self.opened.iter().any(|page| page.linear == linear)
    }

    fn is_open(&self, host: *mut u8) -> bool {
        self.opened.iter().any(|page| page.host == page_of(host))
    }

    /// A page that the translation may write, by number.
    pub fn opened(&self, number: usize) -> Option<Opened> {
        self.opened.get(number).copied()
    }

    /// The interpreter is done: keeps what it wrote, takes it back, and lets the translation begin.
    pub fn turn(&mut self) {
        self.left.resize(self.bytes.len(), 0);
        for &Written { host, len, at } in &self.written {
            read(host, &mut self.left[at..at + len]);
        }
        self.take_back(0);
        for &Opened { host, .. } in &self.opened {
            if self.copies.iter().any(|copy| copy.host == host) {
                continue;
            }
            let spare = self.spare.pop();
            let mut copy = spare.unwrap_or_else(|| Copied { host, expected: Box::new([0; PAGE]) });
            copy.host = host;
            read(host, &mut copy.expected[..]);
            self.copies.push(copy);
        }
        for &Written { host, len, at } in &self.written {
            if let Some(copy) = self.copies.iter_mut().find(|copy| copy.host == page_of(host)) {
                let first = host.addr() - copy.host.addr();
                copy.expected[first..first + len].copy_from_slice(&self.left[at..at + len]);
            }
        }
        self.turned = self.written.len();
        self.phase = Phase::Translation;
    }

    /// The interpreter could not finish: takes back what it wrote.
    pub fn abandon(&mut self) {
        self.take_back(0);
        self.phase = Phase::Off;
    }

    /// Gives the bytes that were noted from `first` on the values back that they had, the last first.
    fn take_back(&self, first: usize) {
        for written in self.written[first..].iter().rev() {
            for n in 0..written.len {
                write(written.host.wrapping_add(n), self.bytes[written.at + n]);
            }
        }
    }

    /// The translation is done: the bytes that it left otherwise than the interpreter did, at most eight of them.
    pub fn differences(&mut self) -> Vec<Differs> {
        self.phase = Phase::Off;
        let mut found = Vec::new();
        for copy in &self.copies {
            if holds(copy.host, &copy.expected) {
                continue;
            }
            let now = &mut self.now;
            read(copy.host, &mut now[..]);
            let walked = |n: usize| n.is_multiple_of(8) && self.walks.get() > 0;
            let differs = |n: &usize| {
                let bits = now[*n] ^ copy.expected[*n];
                if walked(*n) { bits & !WALK_BITS != 0 } else { bits != 0 }
            };
            let page = self.opened.iter().find(|page| page.host == copy.host);
            found.extend((0..PAGE).filter(differs).map(|n| Differs {
                linear: page.map(|page| page.linear + n as u64),
                interpreted: copy.expected[n],
                translated: now[n],
            }));
        }
        if self.stray {
            let outside = self.written[self.turned..].iter().filter(|written| !self.is_open(written.host));
            found.extend(outside.map(|written| {
                let mut byte = [0];
                read(written.host, &mut byte);
                Differs { linear: None, interpreted: self.bytes[written.at], translated: byte[0] }
            }));
        }
        found.truncate(8);
        found
    }

    /// Takes back what the translation wrote, for another try. What it should not have written may have been a device's:
    /// that is kept for [`Journal::settle`].
    pub fn undo(&mut self) {
        self.take_back(self.turned);
        for copy in &self.copies {
            let mut before = copy.expected.clone();
            for written in self.written[..self.turned].iter().rev() {
                if page_of(written.host) == copy.host {
                    let first = written.host.addr() - copy.host.addr();
                    let bytes = &self.bytes[written.at..written.at + written.len];
                    before[first..first + written.len].copy_from_slice(bytes);
                }
            }
            let now = &mut self.now;
            read(copy.host, &mut now[..]);
            for n in (0..PAGE).filter(|n| now[*n] != before[*n]) {
                let host = copy.host.wrapping_add(n);
                if copy.expected[n] == before[n] {
                    self.foreign.push((host, now[n]));
                }
                write(host, before[n]);
            }
        }
    }

    /// The two agreed: what was written only once was a device's, and is put back.
    pub fn settle(&mut self) {
        for (host, byte) in self.foreign.drain(..) {
            write(host, byte);
        }
    }
}

// SAFETY: the pointers lead to guest RAM, which the processor keeps alive and which any thread may access.
unsafe impl Send for Journal {}
