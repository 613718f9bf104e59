//! The block device as its driver sees it: requests through a ring, with memory and files behind.

use std::fs;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, mpsc};

use proptest::prelude::*;

use super::*;
use crate::testing::Driver;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

fn range(sector: u64, n_sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &n_sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// A disk of 64 sectors; each byte is its sector's number.
fn contents() -> Vec<u8> {
    (0..64 * 512).map(|i| (i / 512) as u8).collect()
}

fn memory(read_only: bool) -> Driver<Block> {
    Driver::new(Block::new(Arc::new(Memory::new(contents(), read_only)), "serial-1"))
}

/// Does a request without an answer but its status.
fn status(driver: &mut Driver<Block>, kind: u32, sector: u64, data: &[u8]) -> u8 {
    let used = driver.call(0, &[&header(kind, sector), data], &[1]);
    used.bytes.first().copied().expect("there is a status")
}

#[test]
fn sectors_come_back_as_written() {
    let mut driver = memory(false);
    let data: Vec<u8> = (0..1024).map(|i| i as u8).collect();
    assert_eq!(status(&mut driver, OUT, 5, &data), OK);
    let used = driver.call(0, &[&header(IN, 4)], &[100, 412, 1024, 1]);
    assert_eq!(used.len, 1537);
    assert_eq!(used.bytes[..512], [4; 512]);
    assert_eq!(used.bytes[512..1536], data);
    assert_eq!(used.bytes[1536], OK);
}

#[test]
fn request_outside_the_disk_or_of_part_of_a_sector_fails() {
    let mut driver = memory(false);
    for (sector, bytes) in [(64, 512), (63, 1024), (u64::MAX, 512), (0, 511)] {
        assert_eq!(status(&mut driver, OUT, sector, &vec![9; bytes]), IO_ERROR, "{sector} {bytes}");
    }
    assert_eq!(status(&mut driver, OUT, 64, &[]), OK, "nothing at the end is inside");
    let used = driver.call(0, &[&header(IN, 0)], &[512, 1]);
    assert_eq!(used.bytes[..512], [0; 512], "nothing was written");
}

#[test]
fn serial_number_is_padded_and_cut() {
    let mut driver = memory(false);
    assert_eq!(driver.call(0, &[&header(GET_ID, 0)], &[20, 1]).bytes, *b"serial-1\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(driver.call(0, &[&header(GET_ID, 0)], &[6, 1]).bytes, *b"serial\0");
}

#[test]
fn unknown_request_is_unsupported() {
    assert_eq!(status(&mut memory(false), 99, 0, &[]), UNSUPPORTED);
}

#[test]
fn read_only_disk_says_so_and_refuses_to_change() {
    let mut driver = memory(true);
    assert_ne!(driver.device.features().0 & feature::RO, 0);
    assert_eq!(status(&mut driver, OUT, 0, &[1; 512]), IO_ERROR);
    assert_eq!(status(&mut driver, WRITE_ZEROES, 0, &range(1, 1, 0)), IO_ERROR);
    assert_eq!(driver.call(0, &[&header(IN, 1)], &[512, 1]).bytes[..512], [1; 512]);
}

#[test]
fn zeroed_and_discarded_ranges_read_as_zeros() {
    let mut driver = memory(false);
    let ranges = [range(1, 1, 1), range(3, 2, 0)].concat();
    assert_eq!(status(&mut driver, WRITE_ZEROES, 0, &ranges), OK);
    assert_eq!(status(&mut driver, DISCARD, 0, &range(6, 1, 0)), OK);
    let used = driver.call(0, &[&header(IN, 0)], &[8 * 512, 1]);
    let firsts: Vec<u8> = used.bytes[..8 * 512].iter().copied().step_by(512).collect();
    assert_eq!(firsts, [0, 0, 2, 0, 0, 5, 0, 7]);
}

#[test]
fn ranges_against_the_rules_are_refused() {
    let mut driver = memory(false);
    assert_eq!(status(&mut driver, DISCARD, 0, &range(0, 1, 1)), UNSUPPORTED);
    assert_eq!(status(&mut driver, WRITE_ZEROES, 0, &range(0, 1, 2)), UNSUPPORTED);
    assert_eq!(status(&mut driver, WRITE_ZEROES, 0, &range(60, 5, 0)), IO_ERROR);
    assert_eq!(status(&mut driver, WRITE_ZEROES, 0, &range(u64::MAX, u32::MAX, 0)), IO_ERROR);
    assert_eq!(status(&mut driver, DISCARD, 0, &[0; 15]), IO_ERROR);
    assert_eq!(status(&mut driver, DISCARD, 0, &[0; 17 * 16]), IO_ERROR);
}

#[test]
fn configuration_tells_capacity_and_block_size() {
    let driver = memory(false);
    let (mut capacity, mut block) = ([0; 8], [0; 4]);
    driver.device.read_config(0, &mut capacity);
    driver.device.read_config(20, &mut block);
    assert_eq!((u64::from_le_bytes(capacity), u32::from_le_bytes(block)), (64, 512));
}

/// Notes what is called; each write waits until it is let through, if there is a gate.
struct Recording {
    log: Mutex<Vec<&'static str>>,
    gate: Option<(Sender<()>, Mutex<Receiver<()>>)>,
    fail: bool,
}

impl Recording {
    fn note(&self, what: &'static str) -> io::Result<()> {
        self.log.lock().unwrap().push(what);
        if self.fail { Err(io::ErrorKind::Other.into()) } else { Ok(()) }
    }
}

impl BlockBackend for Recording {
    fn len(&self) -> u64 {
        1 << 20
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
        self.note("read")
    }
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        if let Some((reached, go)) = &self.gate {
            reached.send(()).unwrap();
            go.lock().unwrap().recv().unwrap();
        }
        self.note("write")
    }
    fn flush(&self) -> io::Result<()> {
        self.note("flush")
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        self.note("discard")
    }
    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        self.note("zeroes")
    }
}

fn recording(fail: bool) -> Arc<Recording> {
    Arc::new(Recording { log: Mutex::default(), gate: None, fail })
}

#[test]
fn writes_are_flushed_one_by_one_when_the_driver_cannot_flush_or_wants_so() {
    let log_of = |features: u64, writeback: Option<u8>| {
        let backend = recording(false);
        let mut driver = Driver::with_features(Block::new(backend.clone(), ""), Features(features));
        if let Some(writeback) = writeback {
            driver.device.write_config(32, &[writeback]);
        }
        status(&mut driver, OUT, 0, &[0; 512]);
        backend.log.lock().unwrap().clone()
    };
    assert_eq!(log_of(0, None), ["write", "flush"]);
    assert_eq!(log_of(feature::FLUSH, None), ["write"]);
    assert_eq!(log_of(feature::FLUSH | feature::CONFIG_WCE, None), ["write"]);
    assert_eq!(log_of(feature::FLUSH | feature::CONFIG_WCE, Some(0)), ["write", "flush"]);
}

#[test]
fn host_errors_reach_the_guest() {
    let mut driver = Driver::new(Block::new(recording(true), ""));
    assert_eq!(status(&mut driver, OUT, 0, &[0; 512]), IO_ERROR);
    assert_eq!(status(&mut driver, FLUSH, 0, &[]), IO_ERROR);
    assert_eq!(driver.call(0, &[&header(IN, 0)], &[512, 1]).len, 0, "no byte was written for sure");
}

#[test]
fn reset_waits_for_the_write_under_way_and_gives_nothing_back() {
    let (reached_send, reached) = channel();
    let (go, go_receive) = mpsc::channel();
    let gate = Some((reached_send, Mutex::new(go_receive)));
    let backend = Arc::new(Recording { log: Mutex::default(), gate, fail: false });
    let mut driver = Driver::new(Block::new(backend.clone(), ""));
    driver.send(0, &[&header(OUT, 0), &[0; 512]], &[1]);
    driver.send(0, &[&header(OUT, 1), &[0; 512]], &[1]);
    reached.recv().unwrap();
    let later = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        go.send(()).unwrap();
    });
    driver.device.reset();
    assert_eq!(*backend.log.lock().unwrap(), ["write"], "ended before reset returned, the second not begun");
    assert_eq!(driver.rings[0].take_used(), None);
    later.join().unwrap();
}

#[test]
fn restored_disk_goes_on_with_what_was_not_taken() {
    let mut driver = memory(false);
    assert_eq!(status(&mut driver, OUT, 0, &[7; 512]), OK);
    driver.device.write_config(32, &[0]);
    driver.migrate(Block::new(Arc::new(Memory::new(contents(), false)), ""));
    let mut writeback = [9];
    driver.device.read_config(32, &mut writeback);
    assert_eq!(writeback, [0]);
    assert_eq!(driver.call(0, &[&header(IN, 9)], &[512, 1]).bytes[0], 9);
}

#[test]
fn raw_file_keeps_what_the_guest_wrote_and_gives_holes_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, contents()).unwrap();
    let mut driver = Driver::new(Block::new(Arc::new(RawFile::open(&path, false).unwrap()), ""));
    assert_eq!(status(&mut driver, OUT, 2, &[0xaa; 512]), OK);
    assert_eq!(status(&mut driver, WRITE_ZEROES, 0, &range(8, 8, 1)), OK);
    assert_eq!(status(&mut driver, WRITE_ZEROES, 0, &range(16, 8, 0)), OK);
    assert_eq!(status(&mut driver, DISCARD, 0, &range(24, 8, 0)), OK);
    assert_eq!(status(&mut driver, FLUSH, 0, &[]), OK);
    let after = fs::read(&path).unwrap();
    assert_eq!(after.len(), contents().len());
    assert_eq!(after[2 * 512..3 * 512], [0xaa; 512]);
    assert_eq!(after[8 * 512..24 * 512], [0; 16 * 512]);
    assert_eq!(after[32 * 512..], contents()[32 * 512..]);
}

#[test]
fn image_in_use_by_a_writer_is_refused_and_readers_share() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, contents()).unwrap();
    let writer = RawFile::open(&path, false).unwrap();
    let refused = RawFile::open(&path, true).unwrap_err();
    assert_eq!(refused.to_string(), format!("disk image {} is in use", path.display()));
    drop(writer);
    let _first = RawFile::open(&path, true).unwrap();
    assert!(RawFile::open(&path, true).is_ok());
    assert!(matches!(RawFile::open(&path, false), Err(OpenError::InUse { .. })));
    assert!(matches!(RawFile::open(&dir.path().join("none"), true), Err(OpenError::Io { .. })));
}

#[test]
fn request_without_header_or_status_asks_for_a_reset() {
    for (readable, writable) in [(&[0; 15][..], &[1][..]), (&[0; 16], &[])] {
        let mut driver = memory(false);
        driver.send(0, &[readable], writable);
        driver.wait_needs_reset();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn hostile_requests_are_survived(
        kind in 0u32..16,
        sector in 0u64..70,
        chain in proptest::collection::vec((0..48u64 << 20, 0u32..90_000, 0u16..8, 0u16..8), 6),
    ) {
        let mut driver = memory(false);
        for (addr, ..) in &chain {
            let _ = driver.ram.write(hyperkit_mem::GuestAddr(*addr), &header(kind, sector));
        }
        driver.send_raw(0, &chain);
        driver.restart();
        prop_assert_eq!(status(&mut driver, FLUSH, 0, &[]), OK);
    }
}
