//! Tiny guests on the host's KVM. Each test says SKIP where there is none.

#![cfg(target_os = "linux")]

use std::hint;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use hyperkit_bus::{Bus, Device};
use hyperkit_hv::kvm::KvmVm;
use hyperkit_hv::state::x86_64::{Segment, gpr};
use hyperkit_hv::{CpuModel, Exit, Kick, Tsc, Vcpu, Vm, VmError, X86State};
use hyperkit_mem::{GuestAddr, GuestRam};

/// Remembers what is written, reads as its last byte plus one.
#[derive(Default)]
struct Recorder(Vec<u8>);

impl Device for Recorder {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(self.0.last().copied().unwrap_or(0) + 1);
    }
    fn write(&mut self, _offset: u64, data: &[u8]) {
        self.0.extend(data);
    }
}

struct Guest {
    vm: Arc<KvmVm>,
    vcpu: Box<dyn Vcpu>,
    bus: Bus,
    recorder: Arc<Mutex<Recorder>>,
}

#[expect(clippy::print_stdout, reason = "a test says why it did not run")]
fn skip(why: &str) {
    println!("SKIP: {why}");
}

/// A real-mode guest with `code` at 0x1000, a recorder at port 0x80 and at 0xd000_0000; `None` without KVM.
fn guest(code: &[u8]) -> Option<Guest> {
    let ram = Arc::new(GuestRam::new(1 << 20).expect("a megabyte is to be had"));
    ram.write(GuestAddr(0x1000), code).expect("the code lies in RAM");
    let vm = match KvmVm::new(ram, &CpuModel { vcpus: 1, tsc: Tsc { khz: 1_000_000 } }) {
        Ok(vm) => vm,
        Err(VmError::Unavailable { why, .. }) => {
            skip(&why);
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    let mut vcpu = vm.take_vcpu(0).expect("nobody has taken it");
    let mut state = X86State::after_reset();
    state.segments[1] = Segment { selector: 0, base: 0, limit: 0xffff, rights: 0x9b };
    state.rip = 0x1000;
    vcpu.set_state(&state).expect("the state is valid");
    let recorder = Arc::new(Mutex::new(Recorder::default()));
    let mut bus = Bus::default();
    bus.ports.insert(0x80, 1, recorder.clone()).expect("the port is free");
    Some(Guest { vm, vcpu, bus, recorder })
}

#[test]
fn ports_reach_the_bus_and_a_triple_fault_ends_the_run() {
    // mov al,41; out 80,al; in al,80; out 80,al; ud2
    let code = [0xb0, 0x41, 0xe6, 0x80, 0xe4, 0x80, 0xe6, 0x80, 0x0f, 0x0b];
    let Some(mut guest) = guest(&code) else { return };
    let mut state = X86State::pvh(0x1000, 0);
    state.idtr.limit = 0; // no handler for the exception, none for the double fault
    guest.vcpu.set_state(&state).unwrap();
    assert_eq!(guest.vcpu.run(&guest.bus).unwrap(), Exit::TripleFault);
    assert_eq!(guest.recorder.lock().unwrap().0, [0x41, 0x42]);
}

#[test]
fn a_kick_gets_a_vcpu_out_of_hlt_and_out_of_a_loop() {
    for code in [&[0xf4, 0xeb, 0xfd][..], &[0xeb, 0xfe]] {
        let Some(mut guest) = guest(code) else { return };
        let kick = guest.vm.kick(0);
        let kicker = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            kick.kick();
        });
        assert_eq!(guest.vcpu.run(&guest.bus).unwrap(), Exit::Kicked);
        kicker.join().unwrap();
    }
}

#[test]
fn a_kick_before_the_run_is_not_lost() {
    let Some(mut guest) = guest(&[0xeb, 0xfe]) else { return };
    guest.vm.kick(0).kick();
    assert_eq!(guest.vcpu.run(&guest.bus).unwrap(), Exit::Kicked);
}

/// A kick may come while the thread is anywhere: in the guest, in the kernel, or on its way in or out. A lost one
/// leaves the guest in its loop for good, which the watchdog turns into a failure.
#[test]
fn no_kick_is_lost_whenever_it_comes() {
    const KICKS: u64 = 1000;
    for code in [&[0xf4, 0xeb, 0xfd][..], &[0xeb, 0xfe], &[0xe4, 0x80, 0xeb, 0xfc]] {
        let Some(mut guest) = guest(code) else { return };
        let kick = guest.vm.kick(0);
        let (back, returns) = mpsc::channel();
        let (again, turns) = mpsc::channel();
        let runner = thread::spawn(move || {
            while turns.recv().is_ok() {
                back.send(guest.vcpu.run(&guest.bus).unwrap()).unwrap();
            }
        });
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for n in 0..KICKS {
            again.send(()).unwrap();
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let until = Instant::now() + Duration::from_nanos((random >> 40) % 60_000);
            while Instant::now() < until {
                hint::spin_loop();
            }
            kick.kick();
            let exit = returns.recv_timeout(Duration::from_secs(10));
            assert_eq!(exit, Ok(Exit::Kicked), "kick {n} of a guest that runs {code:02x?}");
        }
        drop(again);
        runner.join().unwrap();
    }
}

/// Kicks the vCPU that reads it, and gives 0x5a.
struct KicksWhenRead(Arc<dyn Kick>);

impl Device for KicksWhenRead {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        self.0.kick();
        data.fill(0x5a);
    }
    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

#[test]
fn a_kick_in_the_middle_of_a_port_read_lets_the_read_end() {
    // in al,81; jmp self
    let Some(mut guest) = guest(&[0xe4, 0x81, 0xeb, 0xfe]) else { return };
    let device = KicksWhenRead(guest.vm.kick(0));
    guest.bus.ports.insert(0x81, 1, Arc::new(Mutex::new(device))).unwrap();
    assert_eq!(guest.vcpu.run(&guest.bus).unwrap(), Exit::Kicked);
    let state = guest.vcpu.state().unwrap();
    assert_eq!((state.gpr[gpr::RAX] & 0xff, state.rip), (0x5a, 0x1002));
}

#[test]
fn state_goes_in_and_comes_out() {
    // add ax, bx; hlt
    let Some(mut guest) = guest(&[0x01, 0xd8, 0xf4]) else { return };
    let mut state = guest.vcpu.state().unwrap();
    (state.gpr[gpr::RAX], state.gpr[gpr::RBX]) = (0x1234, 0x1111);
    state.fxsave[160..164].copy_from_slice(&[1, 2, 3, 4]);
    guest.vcpu.set_state(&state).unwrap();
    let kick = guest.vm.kick(0);
    let kicker = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        kick.kick();
    });
    guest.vcpu.run(&guest.bus).unwrap();
    kicker.join().unwrap();
    let after = guest.vcpu.state().unwrap();
    assert_eq!(after.gpr[gpr::RAX], 0x2345);
    assert_eq!(after.rip, 0x1003);
    assert_eq!(after.fxsave[160..164], [1, 2, 3, 4]);
}

#[test]
fn the_interrupt_controller_survives_save_and_restore() {
    let Some(guest) = guest(&[0xf4]) else { return };
    let saved = guest.vm.save();
    guest.vm.restore(&saved).unwrap();
    assert_eq!(guest.vm.save()[10..], saved[10..]); // all but the running clock
    for broken in [&saved[..17], &[2; 210], &[]] {
        assert!(guest.vm.restore(broken).is_err());
    }
}

#[test]
fn the_probe_gives_a_speed() {
    match hyperkit_hv::kvm::speed() {
        Ok(speed) => assert!(speed.mips > 0.01, "{speed:?}"),
        Err(error) => skip(&error.to_string()),
    }
}
