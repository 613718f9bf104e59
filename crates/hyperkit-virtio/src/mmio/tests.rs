//! The register window as a driver works it, and as a hostile one does.

use hyperkit_bus::{RestoreError, Saved};
use proptest::prelude::*;

use super::*;
use crate::testing::{CountingLine, Driver};

/// Gives every chain back with its readable bytes doubled. Config: one writable byte, then zeros.
struct Doubler {
    sizes: [u16; 2],
    config: u8,
    active: Option<Activation>,
}

impl Doubler {
    fn boxed() -> Box<Doubler> {
        Box::new(Doubler { sizes: [8, 16], config: 5, active: None })
    }
}

const MYSTERY_FEATURE: u64 = 1 << 3;

impl VirtioDevice for Doubler {
    fn device_id(&self) -> u32 {
        42
    }
    fn features(&self) -> Features {
        Features(MYSTERY_FEATURE)
    }
    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset == 0 {
            data[0] = self.config;
        }
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if offset == 0 {
            self.config = data[0];
            if let Some(active) = &self.active {
                active.interrupt.config_changed();
            }
        }
    }
    fn activate(&mut self, activation: Activation) {
        self.active = Some(activation);
    }
    fn notify(&mut self, index: u16) {
        let Some(Activation { ram, queues, interrupt, .. }) = &mut self.active else { return };
        let queue = queues[usize::from(index)].as_mut().expect("only enabled queues are notified");
        for _ in 0..64 {
            let chain = match queue.pop(ram) {
                Ok(Some(chain)) => chain,
                Ok(None) => break,
                Err(_) => return interrupt.needs_reset(),
            };
            let mut byte = [0];
            let (mut reader, mut writer) = (chain.reader(ram), chain.writer(ram));
            while reader.read(&mut byte) == 1 && writer.write(&[byte[0].wrapping_mul(2)]) == 1 {}
            let written = writer.written();
            queue.push_used(ram, chain, written);
        }
        if queue.needs_notification(ram) {
            interrupt.used();
        }
    }
    fn reset(&mut self) {
        self.active = None;
    }
    fn queue_positions(&self) -> Vec<(u16, u16)> {
        let queues = self.active.iter().flat_map(|active| &active.queues);
        queues.map(|queue| queue.as_ref().map_or((0, 0), Queue::positions)).collect()
    }
    fn save(&self) -> Vec<u8> {
        vec![1, self.config]
    }
    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let [1, config] = bytes else {
            return Err(RestoreError { device: "doubler", why: "not two bytes".into() });
        };
        self.config = *config;
        Ok(())
    }
}

const ALL: u64 = u64::MAX;

fn ram() -> Arc<GuestRam> {
    Arc::new(GuestRam::new(1 << 20).unwrap())
}

fn driver(wanted: u64) -> Driver {
    Driver::start(Doubler::boxed(), &ram(), GuestAddr(0x1000), 0x4000, wanted)
}

fn bare() -> MmioTransport {
    MmioTransport::new(Doubler::boxed(), ram(), Arc::new(CountingLine::default()))
}

fn read(transport: &mut MmioTransport, offset: u64) -> u32 {
    let mut word = [0; 4];
    transport.read(offset, &mut word);
    u32::from_le_bytes(word)
}

fn write(transport: &mut MmioTransport, offset: u64, value: u32) {
    transport.write(offset, &value.to_le_bytes());
}

#[test]
fn identity_registers_tell_a_version_2_device() {
    let mut transport = bare();
    let words = [reg::MAGIC_VALUE, reg::VERSION, reg::DEVICE_ID].map(|offset| read(&mut transport, offset));
    assert_eq!(words, [0x7472_6976, 2, 42]);
}

#[test]
fn request_travels_both_ways_with_one_interrupt() {
    for wanted in [0, ALL] {
        let mut driver = driver(wanted);
        driver.rings[1].add(&[&[1, 2, 3]], &[8]);
        driver.notify(1);
        assert_eq!(driver.rings[1].take_used().unwrap().bytes, [2, 4, 6]);
        assert_eq!((driver.line.n_edges(), driver.take_interrupt(), driver.take_interrupt()), (1, 1, 0));
    }
}

#[test]
fn features_never_offered_are_not_accepted() {
    for (features, accepted) in [
        (feature::VERSION_1, true),
        (feature::VERSION_1 | MYSTERY_FEATURE, true),
        (0, false),
        (1 | feature::VERSION_1, false),
    ] {
        let mut transport = bare();
        write(&mut transport, reg::STATUS, 3);
        for half in 0..2 {
            write(&mut transport, reg::DRIVER_FEATURES_SEL, half);
            write(&mut transport, reg::DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        write(&mut transport, reg::STATUS, 3 | status::FEATURES_OK);
        assert_eq!(read(&mut transport, reg::STATUS) & status::FEATURES_OK != 0, accepted, "{features:#x}");
    }
}

#[test]
fn driver_ok_before_features_ok_is_ignored() {
    let mut transport = bare();
    write(&mut transport, reg::STATUS, 7);
    assert_eq!(read(&mut transport, reg::STATUS), 3);
}

#[test]
fn queue_outside_memory_makes_the_device_ask_for_a_reset() {
    let mut driver = driver(ALL);
    driver.reset();
    driver.write(reg::STATUS, 3);
    driver.write(reg::DRIVER_FEATURES_SEL, 1);
    driver.write(reg::DRIVER_FEATURES, 1);
    driver.write(reg::STATUS, 0xb);
    driver.write(reg::QUEUE_DESC_HIGH, 1);
    driver.write(reg::QUEUE_READY, 1);
    driver.write(reg::STATUS, 0xf);
    assert_eq!(driver.status(), 0xf | status::NEEDS_RESET);
    assert_eq!(driver.take_interrupt(), 2);
    driver.notify(0);
    driver.reset();
    assert_eq!(driver.status(), 0);
}

#[test]
fn broken_chain_makes_the_device_ask_for_a_reset_once() {
    let mut driver = driver(ALL);
    driver.rings[0].make_available(99);
    driver.notify(0);
    driver.notify(0);
    assert_eq!(driver.status() & status::NEEDS_RESET, status::NEEDS_RESET);
    assert_eq!(driver.line.n_edges(), 1);
}

#[test]
fn config_change_is_told_with_a_new_generation() {
    let mut driver = driver(ALL);
    let before = driver.read(reg::CONFIG_GENERATION);
    driver.transport.write(reg::CONFIG, &[9]);
    assert_eq!(driver.config::<2>(0), [9, 0]);
    assert_eq!(driver.take_interrupt(), 2);
    assert_ne!(driver.read(reg::CONFIG_GENERATION), before);
}

#[test]
fn reset_device_is_started_again() {
    let mut driver = driver(ALL);
    driver.reset();
    driver.rings[0].add(&[&[1]], &[1]);
    driver.notify(0);
    assert_eq!(driver.rings[0].take_used(), None, "a device that was reset leaves the rings alone");
    write(&mut driver.transport, reg::QUEUE_SEL, 0);
    assert_eq!(driver.read(reg::QUEUE_READY), 0);
}

#[test]
fn saved_machine_goes_on_elsewhere() {
    let ram = ram();
    let mut driver = Driver::start(Doubler::boxed(), &ram, GuestAddr(0x1000), 0x4000, ALL);
    driver.rings[0].add(&[&[1]], &[1]);
    driver.notify(0);
    driver.transport.write(reg::CONFIG, &[77]);
    driver.rings[0].add(&[&[2]], &[1]); // not notified: the kick is lost with the old machine
    let saved = driver.transport.save();

    let line = Arc::new(CountingLine::default());
    let mut transport =
        MmioTransport::new(Doubler::boxed(), ram, Arc::clone(&line) as Arc<dyn InterruptLine>);
    transport.restore(&saved).unwrap();
    assert_eq!(transport.save()[5..], driver_saved_after_notify(&mut driver)[5..]);
    driver.transport = transport;
    assert_eq!(driver.rings[0].take_used().unwrap().bytes, [2]);
    assert_eq!(driver.rings[0].take_used().unwrap().bytes, [4]);
    assert_eq!(driver.config::<1>(0), [77]);
    assert!(line.n_edges() >= 1, "the interrupt that was pending is repeated");
}

fn driver_saved_after_notify(driver: &mut Driver) -> Vec<u8> {
    driver.notify(0);
    driver.transport.save()
}

#[test]
fn damaged_states_are_refused_and_change_nothing() {
    let saved = driver(ALL).transport.save();
    let mut transport = bare();
    let before = transport.save();
    let mut other_device = saved.clone();
    other_device[1] = 1;
    for bytes in [&saved[..saved.len() - 1], &saved[..20], &[], &[9], &other_device] {
        assert!(transport.restore(bytes).is_err());
        assert_eq!(transport.save(), before);
    }
}

#[derive(Debug, Clone)]
enum Access {
    Read { offset: u64, len: usize },
    Write { offset: u64, bytes: Vec<u8> },
    Poke { addr: u64, bytes: Vec<u8> },
}

fn access() -> impl Strategy<Value = Access> {
    let value = prop_oneof![any::<u32>(), 0u32..0x20, (0u32..0x100).prop_map(|page| page << 12)];
    let len = prop_oneof![Just(1usize), Just(2), Just(4), Just(8)];
    prop_oneof![
        (0..WINDOW_BYTES - 8, len).prop_map(|(offset, len)| Access::Read { offset, len }),
        (0..WINDOW_BYTES / 4, value).prop_map(|(index, value)| Access::Write {
            offset: 4 * index,
            bytes: value.to_le_bytes().to_vec()
        }),
        (0u64..0x10_0000 - 64, proptest::collection::vec(any::<u8>(), 1..64))
            .prop_map(|(addr, bytes)| Access::Poke { addr, bytes }),
        Just(Access::Write { offset: reg::QUEUE_NOTIFY, bytes: vec![0, 0, 0, 0] }),
    ]
}

proptest! {
    #[test]
    fn hostile_register_sequences_are_survived(
        accesses in proptest::collection::vec(access(), 0..200),
        started in any::<bool>(),
    ) {
        let ram = ram();
        let mut transport = if started {
            Driver::start(Doubler::boxed(), &ram, GuestAddr(0x1000), 0x4000, ALL).transport
        } else {
            MmioTransport::new(Doubler::boxed(), Arc::clone(&ram), Arc::new(CountingLine::default()))
        };
        for access in accesses {
            match access {
                Access::Read { offset, len } => transport.read(offset, &mut vec![0; len]),
                Access::Write { offset, bytes } => transport.write(offset, &bytes),
                Access::Poke { addr, bytes } => ram.write(GuestAddr(addr), &bytes).unwrap(),
            }
        }
        let saved = transport.save();
        let mut other = MmioTransport::new(Doubler::boxed(), ram, Arc::new(CountingLine::default()));
        prop_assert_eq!(other.restore(&saved), Ok(()));
    }

    #[test]
    fn hostile_states_are_survived(mut index in 0usize..200, byte in any::<u8>()) {
        let mut saved = driver(ALL).transport.save();
        index %= saved.len();
        saved[index] = byte;
        let mut transport = bare();
        if transport.restore(&saved).is_ok() {
            write(&mut transport, reg::QUEUE_NOTIFY, 0);
            write(&mut transport, reg::STATUS, 0);
        }
    }
}
