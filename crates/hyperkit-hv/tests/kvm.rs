//! Tiny guests on the host's KVM. Each test says SKIP where there is none.

#![cfg(target_os = "linux")]

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hyperkit_bus::{Bus, Device};
use hyperkit_hv::kvm::KvmVm;
use hyperkit_hv::state::x86_64::{Segment, gpr};
use hyperkit_hv::{CpuModel, Exit, Tsc, Vcpu, Vm, VmError, X86State};
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

/// A real-mode guest with `code` at 0x1000, a recorder at port 0x80 and at 0xd000_0000; `None` without KVM.
fn guest(code: &[u8]) -> Option<Guest> {
    let ram = Arc::new(GuestRam::new(1 << 20).unwrap());
    ram.write(GuestAddr(0x1000), code).unwrap();
    let vm = match KvmVm::new(ram, &CpuModel { vcpus: 1, tsc: Tsc { khz: 1_000_000 } }) {
        Ok(vm) => vm,
        Err(VmError::Unavailable { why, .. }) => {
            println!("SKIP: {why}");
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    let mut vcpu = vm.take_vcpu(0).unwrap();
    let mut state = X86State::after_reset();
    state.segments[1] = Segment { selector: 0, base: 0, limit: 0xffff, rights: 0x9b };
    state.rip = 0x1000;
    vcpu.set_state(&state).unwrap();
    let recorder = Arc::new(Mutex::new(Recorder::default()));
    let mut bus = Bus::default();
    bus.ports.insert(0x80, 1, recorder.clone()).unwrap();
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
        Err(error) => println!("SKIP: {error}"),
    }
}
