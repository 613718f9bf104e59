//! The entropy device as its driver sees it.

use std::io;

use proptest::prelude::*;

use hyperkit_virtio::VirtioDevice;

use super::{EntropySource, FILL_BYTES_MAX, HostEntropy, Rng};
use crate::testing::Driver;

/// Counts up.
struct Counter(u8);

impl EntropySource for Counter {
    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        for byte in bytes {
            *byte = self.0;
            self.0 = self.0.wrapping_add(1);
        }
        Ok(())
    }
}

struct Dry;

impl EntropySource for Dry {
    fn fill(&mut self, _bytes: &mut [u8]) -> io::Result<()> {
        Err(io::ErrorKind::WouldBlock.into())
    }
}

fn driver(source: impl EntropySource + 'static) -> Driver<Rng> {
    Driver::new(Rng::new(Box::new(source)))
}

#[test]
fn buffers_are_filled_across_segments() {
    let used = driver(Counter(7)).call(0, &[], &[3, 2]);
    assert_eq!(used.bytes, [7, 8, 9, 10, 11]);
}

#[test]
fn driver_is_interrupted_once_for_a_batch() {
    let mut driver = driver(Counter(0));
    driver.rings[0].add(&[], &[4]);
    driver.rings[0].add(&[], &[4]);
    driver.device.notify(0);
    assert_eq!(driver.interrupt.n_used(), 1);
}

#[test]
fn huge_buffer_is_filled_in_part() {
    let used = driver(HostEntropy).call(0, &[], &[1 << 20]);
    assert_eq!(used.len as usize, FILL_BYTES_MAX);
    assert!(used.bytes.iter().any(|&byte| byte != used.bytes[0]), "random bytes differ");
}

#[test]
fn host_without_randomness_stops_the_device() {
    let mut driver = driver(Dry);
    driver.send(0, &[], &[16]);
    assert_eq!(driver.interrupt.n_needs_reset(), 1);
}

#[test]
fn restored_device_goes_on() {
    let mut driver = driver(Counter(0));
    driver.call(0, &[], &[4]);
    driver.migrate(Rng::new(Box::new(Counter(100))));
    assert_eq!(driver.call(0, &[], &[1]).bytes, [100]);
}

#[test]
fn device_serves_again_after_a_reset() {
    let mut driver = driver(Counter(0));
    driver.send_raw(0, &[(u64::MAX, 1, 2, 0)]);
    assert_eq!(driver.interrupt.n_needs_reset(), 1);
    driver.restart();
    assert_eq!(driver.call(0, &[], &[2]).bytes, [0, 1]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn hostile_chains_are_survived(chain in proptest::collection::vec((0..64u64 << 20, 0u32..9000, 0u16..4, 0u16..8), 6)) {
        let mut driver = driver(Counter(0));
        driver.send_raw(0, &chain);
        driver.restart();
        prop_assert_eq!(driver.call(0, &[], &[1]).len, 1);
    }
}
