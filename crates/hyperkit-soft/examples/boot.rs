//! Boots a kernel on the smallest board there is: serial port, power button, interrupt controllers.
//!
//! `boot KERNEL [INITRD|-] [COMMAND LINE]`. With `BOOT_WATCH=SECONDS` in the environment, says every so often where
//! the processor is; with `BOOT_LIMIT=SECONDS`, ends after so long; `BOOT_CPUS=N` makes N processors; with
//! `BOOT_TIERS=interp` the interpreter runs alone, with `BOOT_TIERS=forced` everything is translated at once, with
//! `BOOT_TIERS=N` after N executions; `BOOT_MEMORY=MIB` gives it so much memory.

#![allow(clippy::print_stdout, clippy::exit, clippy::unwrap_used, missing_docs)]

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyperkit_boot::{BootConfig, Image, layout};
use hyperkit_bus::Bus;
use hyperkit_hv::{CpuModel, Exit, Tsc, Vcpu, Vm};
use hyperkit_mem::GuestRam;
use hyperkit_platform::{I8042Reset, Power, PowerCodes, Rtc, Serial};
use hyperkit_soft::SoftVm;
use hyperkit_soft::jit::Tiers;

fn seconds(name: &str) -> Option<f64> {
    std::env::var(name).ok()?.parse().ok()
}

fn board(vm: &dyn Vm, over: Arc<AtomicBool>) -> Bus {
    let kick = vm.kick(0);
    let on_power = Arc::new(move |event| {
        eprintln!("power: {event:?}");
        over.store(true, Ordering::SeqCst);
        kick.kick();
    });
    let sink = Box::new(|bytes: &[u8]| {
        let mut out = std::io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush()).unwrap();
    });
    let mut bus = Bus::default();
    let ports = &mut bus.ports;
    let serial = Serial::new(sink, vm.interrupt_line(layout::SERIAL_GSI));
    ports.insert(u64::from(layout::SERIAL_PORT), 8, Arc::new(Mutex::new(serial))).unwrap();
    let codes = PowerCodes { sleep_type_off: layout::SLEEP_TYPE_OFF, reset: layout::RESET_VALUE };
    let power = Power::new(codes, on_power.clone());
    ports.insert(u64::from(layout::POWER_PORT), 3, Arc::new(Mutex::new(power))).unwrap();
    let reset = I8042Reset::new(on_power);
    ports.insert(u64::from(layout::I8042_COMMAND_PORT), 1, Arc::new(Mutex::new(reset))).unwrap();
    let clock = || std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    ports.insert(u64::from(layout::RTC_PORT), 2, Arc::new(Mutex::new(Rtc::new(Box::new(clock))))).unwrap();
    bus
}

/// Runs a processor other than the first in a thread of its own.
fn start_other(id: u32, mut vcpu: Box<dyn Vcpu>, bus: Arc<Bus>, over: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        while !over.load(Ordering::SeqCst) {
            let exit = vcpu.run(&bus).unwrap();
            if exit == Exit::TripleFault {
                eprintln!("processor {id}: {exit:?} {:#x?}", vcpu.state().unwrap());
                return;
            }
        }
    });
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, rest @ ..] = arguments.as_slice() else {
        eprintln!("usage: boot KERNEL [INITRD|-] [COMMAND LINE]");
        std::process::exit(2);
    };
    let began = Instant::now();
    let vcpus = seconds("BOOT_CPUS").map_or(1, |count| count as u32);
    let open = |path: &str| Image::from_file(std::fs::File::open(path).unwrap()).unwrap();
    let memory = seconds("BOOT_MEMORY").map_or(512, |mib| mib as u64);
    let ram = Arc::new(GuestRam::new(memory << 20).unwrap());
    let config = BootConfig {
        kernel: open(kernel),
        initrd: rest.first().filter(|path| *path != "-").map(|path| open(path)),
        cmdline: rest
            .get(1)
            .cloned()
            .unwrap_or_else(|| "console=ttyS0 earlyprintk=ttyS0 panic=-1".to_owned()),
        vcpus,
        virtio_mmio_devices: 0,
    };
    let state = hyperkit_boot::boot(&ram, &config).unwrap();
    let tiers = match std::env::var("BOOT_TIERS").as_deref() {
        Ok("interp") => Tiers::INTERPRETER,
        Ok("forced") => Tiers::FORCED,
        Ok(count) => Tiers { translate_after: Some(count.parse().unwrap()), ..Tiers::BOTH },
        Err(_) => Tiers::BOTH,
    };
    let vm = SoftVm::with_tiers(ram, CpuModel { vcpus, tsc: Tsc::of_host() }, tiers).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let bus = Arc::new(board(&*vm, Arc::clone(&over)));
    for id in 1..vcpus {
        start_other(id, vm.take_vcpu(id).unwrap(), Arc::clone(&bus), Arc::clone(&over));
    }
    let mut vcpu = vm.take_vcpu(0).unwrap();
    vcpu.set_state(&state).unwrap();
    if let Some(period) = seconds("BOOT_WATCH").or(seconds("BOOT_LIMIT")) {
        let kick = vm.kick(0);
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_secs_f64(period));
                kick.kick();
            }
        });
    }
    loop {
        let exit = vcpu.run(&bus).unwrap();
        if over.load(Ordering::SeqCst) || exit == Exit::TripleFault {
            let state = vcpu.state().unwrap();
            let retired = vcpu.retired().unwrap_or(0);
            let elapsed = began.elapsed().as_secs_f64();
            eprintln!("{exit:?} at {:#x} after {retired} instructions, {elapsed:.2} s", state.rip);
            if exit == Exit::TripleFault {
                eprintln!("{state:#x?}");
            }
            return;
        }
        if let Some(period) = seconds("BOOT_WATCH") {
            let state = vcpu.state().unwrap();
            let retired = vcpu.retired().unwrap_or(0);
            eprintln!(
                "[{period} s] rip {:#x} rsp {:#x} rflags {:#x} halted {} retired {retired}",
                state.rip, state.gpr[4], state.rflags, state.halted
            );
        }
        if seconds("BOOT_LIMIT").is_some_and(|limit| began.elapsed().as_secs_f64() >= limit) {
            let state = vcpu.state().unwrap();
            eprintln!("time is up at {:#x}, {} instructions", state.rip, vcpu.retired().unwrap_or(0));
            return;
        }
    }
}
