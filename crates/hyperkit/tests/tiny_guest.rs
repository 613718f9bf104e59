//! Guests of a few dozen bytes, on each engine that works here.

#![allow(missing_docs, reason = "tests say what they do by their names")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests may")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyperkit::devices::rng::{HostEntropy, Rng};
use hyperkit::{BuildError, EngineChoice, EngineKind, Image, Machine, MachineConfig, Outcome, VmError};
use hyperkit_boot::testing::pvh_elf;

const KERNEL_AT: u64 = 0x10_0000;
/// Longer than anything here takes on a busy machine; only a hang gets there.
const PATIENCE: Duration = Duration::from_secs(60);

/// `mov dx, port; mov al, value; out dx, al`
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

fn print(text: &str) -> Vec<u8> {
    text.bytes().flat_map(|byte| out(0x3f8, byte)).collect()
}

const HALT_FOR_EVER: &[u8] = &[0xf4, 0xeb, 0xfd];
const SPIN_FOR_EVER: &[u8] = &[0xeb, 0xfe];
const POWER_OFF: (u16, u8) = (0x600, 0x34);
const RESET: (u16, u8) = (0x602, 1);

fn power_off() -> Vec<u8> {
    [out(POWER_OFF.0, POWER_OFF.1), HALT_FOR_EVER.to_vec()].concat()
}

struct Guest {
    machine: Machine,
    printed: Arc<Mutex<Vec<u8>>>,
}

impl Guest {
    /// Starts a guest; `None` where the engine does not work, which is said.
    fn start(engine: EngineKind, code: &[u8]) -> Option<Guest> {
        Guest::start_with(engine, code, |_| {})
    }

    fn start_with(engine: EngineKind, code: &[u8], change: impl Fn(&mut MachineConfig)) -> Option<Guest> {
        let printed = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&printed);
        let mut config = MachineConfig::new(Image::from(pvh_elf(code, KERNEL_AT, 0)));
        config.memory_bytes = 4 << 20;
        config.engine = EngineChoice::Exactly(engine);
        config.serial = Box::new(move |bytes| log.lock().unwrap().extend(bytes));
        change(&mut config);
        let machine = match Machine::build(config) {
            Err(BuildError::Vm(error @ VmError::Unavailable { engine: EngineKind::Kvm, .. })) => {
                println!("SKIP: {error}");
                return None;
            }
            machine => machine.unwrap(),
        };
        machine.start().unwrap();
        Some(Guest { machine, printed })
    }

    fn outcome(&self) -> Outcome {
        self.machine.wait_timeout(PATIENCE).expect("the guest hangs")
    }

    fn wait_for_output(&self, text: &str) {
        let begin = std::time::Instant::now();
        while *self.printed.lock().unwrap() != text.as_bytes() {
            assert!(begin.elapsed() < PATIENCE, "printed only {:?}", self.printed.lock().unwrap());
            std::thread::yield_now();
        }
    }
}

fn prints_and_powers_off(engine: EngineKind) {
    let Some(guest) = Guest::start(engine, &[print("hello\n"), power_off()].concat()) else { return };
    let outcome = guest.outcome();
    assert!(matches!(outcome, Outcome::PoweredOff), "{outcome:?}");
    assert_eq!(*guest.printed.lock().unwrap(), b"hello\n");
    assert!(guest.machine.start().is_err(), "a machine starts once");
}

fn resets(engine: EngineKind) {
    for (port, value) in [RESET, (0x64, 0xfe)] {
        let code = [out(port, value), HALT_FOR_EVER.to_vec()].concat();
        let Some(guest) = Guest::start(engine, &code) else { return };
        let outcome = guest.outcome();
        assert!(matches!(outcome, Outcome::Reset), "{outcome:?}");
    }
}

/// What Linux does at last: real mode by way of a 16-bit segment, then f000:fff0.
fn resets_through_the_reset_vector(engine: EngineKind) {
    let real = [
        0x0f, 0x20, 0xc0, // mov eax, cr0
        0x66, 0x83, 0xe0, 0xfe, // and eax, ~1
        0x0f, 0x22, 0xc0, // mov cr0, eax
        0xea, 0xf0, 0xff, 0x00, 0xf0, // jmp f000:fff0
    ];
    let mut copy = Vec::new();
    for (addr, byte) in (0x7000u32..).zip(real) {
        copy.extend([0xc6, 0x05]); // mov byte [addr], byte
        copy.extend(addr.to_le_bytes());
        copy.push(byte);
    }
    let gdtr_at = KERNEL_AT as u32 + copy.len() as u32 + 14;
    let mut code = vec![0x0f, 0x01, 0x15]; // lgdt [gdtr]
    code.extend(gdtr_at.to_le_bytes());
    code.extend([0xea, 0x00, 0x70, 0x00, 0x00, 0x08, 0x00]); // jmp 8:0x7000
    let mut tail = vec![15, 0];
    tail.extend((gdtr_at + 8).to_le_bytes());
    tail.resize(8, 0);
    tail.extend([0; 8]);
    tail.extend(0x0000_9b00_0000_ffffu64.to_le_bytes()); // 16-bit code
    let Some(guest) = Guest::start(engine, &[copy, code, tail].concat()) else { return };
    let outcome = guest.outcome();
    assert!(matches!(outcome, Outcome::Reset), "{outcome:?}");
}

fn triple_fault_ends_the_machine_with_its_state(engine: EngineKind) {
    // ud2 with an IDT of no entries.
    let Some(guest) = Guest::start(engine, &[0x0f, 0x01, 0x1d, 0, 0, 0x11, 0, 0x0f, 0x0b]) else { return };
    let outcome = guest.outcome();
    assert!(matches!(outcome, Outcome::TripleFault { vcpu: 0, state: Some(_) }), "{outcome:?}");
}

fn stops_from_outside(engine: EngineKind) {
    for code in [HALT_FOR_EVER, SPIN_FOR_EVER] {
        let code = [print("x"), code.to_vec()].concat();
        let Some(guest) = Guest::start(engine, &code) else { return };
        guest.wait_for_output("x");
        guest.machine.stopper().stop();
        let outcome = guest.outcome();
        assert!(matches!(outcome, Outcome::Stopped), "{outcome:?}");
    }
}

fn drop_stops(engine: EngineKind) {
    let Some(guest) = Guest::start(engine, &[print("x"), SPIN_FOR_EVER.to_vec()].concat()) else { return };
    guest.wait_for_output("x");
    let printed = Arc::clone(&guest.printed);
    drop(guest);
    assert_eq!(Arc::strong_count(&printed), 1, "something of the machine lives on");
}

fn input_reaches_the_guest(engine: EngineKind) {
    let poll = [0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7]; // wait for LSR bit 0
    let echo = [0x66, 0xba, 0xf8, 0x03, 0xec, 0xee]; // in, out
    let code = [print(">"), poll.to_vec(), echo.to_vec(), power_off()].concat();
    let Some(guest) = Guest::start(engine, &code) else { return };
    guest.wait_for_output(">");
    assert_eq!(guest.machine.serial_input(b"k"), 1);
    guest.outcome();
    assert_eq!(*guest.printed.lock().unwrap(), b">k");
}

fn machines_live_side_by_side(engine: EngineKind) {
    let texts = ["one", "two", "three"];
    let start = |text: &&str| Guest::start(engine, &[print(text), power_off()].concat());
    let guests: Vec<Guest> = texts.iter().filter_map(start).collect();
    for (guest, text) in guests.iter().zip(texts) {
        guest.outcome();
        assert_eq!(*guest.printed.lock().unwrap(), text.as_bytes());
    }
}

fn first_virtio_device_is_in_the_first_slot(engine: EngineKind) {
    let load = [0xa1, 0x00, 0x00, 0x00, 0xd0, 0x66, 0xba, 0xf8, 0x03]; // mov eax, [0xd0000000]; mov dx, 0x3f8
    let out_bytes = [0xee, 0xc1, 0xe8, 0x08].repeat(4); // out dx, al; shr eax, 8
    let code = [load.to_vec(), out_bytes, power_off()].concat();
    let device = || Box::new(Rng::new(Box::new(HostEntropy)));
    let Some(guest) = Guest::start_with(engine, &code, |config| config.devices.push(device())) else {
        return;
    };
    guest.outcome();
    assert_eq!(*guest.printed.lock().unwrap(), b"virt");
}

macro_rules! on_each_engine {
    ($($test:ident),* $(,)?) => {
        mod soft { $(#[test] fn $test() { super::$test(super::EngineKind::Soft); })* }
        mod kvm { $(#[test] fn $test() { super::$test(super::EngineKind::Kvm); })* }
    };
}

on_each_engine!(
    prints_and_powers_off,
    resets,
    resets_through_the_reset_vector,
    triple_fault_ends_the_machine_with_its_state,
    stops_from_outside,
    drop_stops,
    input_reaches_the_guest,
    machines_live_side_by_side,
    first_virtio_device_is_in_the_first_slot,
);

#[test]
fn what_cannot_be_built_is_said_in_one_line() {
    let message = |change: fn(&mut MachineConfig)| {
        let mut config = MachineConfig::new(Image::from(pvh_elf(&[0xf4], KERNEL_AT, 0)));
        change(&mut config);
        Machine::build(config).unwrap_err().to_string()
    };
    assert_eq!(message(|config| config.vcpus = 0), "a machine needs at least one vCPU");
    assert_eq!(message(|config| config.memory_bytes = 0), "no memory for the guest");
    let jpeg = message(|config| config.kernel = Image::from(b"\xff\xd8\xff\xe0".to_vec()));
    assert!(jpeg.starts_with("the kernel is a JPEG image, not a kernel"), "{jpeg}");
}
