//! MSRs, CPUID, the clock; and that nothing a guest writes makes us panic.

use std::sync::Arc;

use hyperkit_hv::{CpuModel, Tsc};
use hyperkit_mem::{GuestAddr, GuestRam};
use proptest::prelude::*;

use super::{cpu, read_u64};
use crate::cpu::Cpu;
use crate::system::clock::{Source, scale};
use crate::system::interrupts::{Processors, timer_shift};
use crate::system::msr::index;

fn read_u32(cpu: &Cpu, at: u64) -> u32 {
    cpu.ram.read_u32(GuestAddr(at)).unwrap()
}

#[test]
fn scale_turns_ticks_into_nanoseconds() {
    for khz in [1_000, 999_999, 1_000_000, 2_596_094, 4_294_967] {
        let (factor, shift) = scale(Tsc { khz });
        let ticks = u128::from(khz) * 1000 * 3600; // an hour
        let shifted = if shift < 0 { ticks >> -shift } else { ticks << shift };
        let nanos = (shifted * u128::from(factor)) >> 32;
        let hour = 3_600_000_000_000u128;
        assert!(nanos.abs_diff(hour) < 10_000, "{khz}: {nanos}");
    }
}

#[test]
fn the_paravirtual_clock_agrees_with_the_counter() {
    let mut cpu = cpu();
    cpu.write_msr(index::SYSTEM_TIME, 0x5000 | 1).unwrap();
    assert_eq!(read_u32(&cpu, 0x5000) % 2, 0, "version");
    assert_eq!(read_u64(&cpu, 0x5018) >> 40 & 1, 1, "stable");
    let (factor, shift) = scale(cpu.interrupts.shared().tsc());
    assert_eq!(read_u32(&cpu, 0x5018), factor);
    assert_eq!((read_u64(&cpu, 0x5018) >> 32) as u8 as i8, shift);
    assert_eq!((read_u64(&cpu, 0x5008), read_u64(&cpu, 0x5010)), (0, 0));
}

#[test]
fn the_wall_clock_is_when_the_counter_was_zero() {
    let mut cpu = cpu();
    cpu.write_msr(index::WALL_CLOCK, 0x6000).unwrap();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!(now - u64::from(read_u32(&cpu, 0x6004)) < 60);
}

#[test]
fn a_counter_that_was_written_goes_on_from_there() {
    let mut cpu = cpu();
    cpu.write_msr(index::TSC, 1 << 50).unwrap();
    let after = cpu.read_msr(index::TSC).unwrap();
    assert!(after >= 1 << 50 && after - (1 << 50) < 1 << 34, "{after:#x}");
}

#[test]
fn a_counter_that_follows_instructions_goes_on_with_them_and_in_sleep() {
    let (ram, tsc) = (Arc::new(GuestRam::new(1 << 20).unwrap()), Tsc { khz: 2_500_000 });
    let model = CpuModel { vcpus: 1, tsc };
    let mut cpu = Cpu::member(ram, Processors::offering(model, true, Source::executed()), 0);
    assert_eq!(cpu.tsc(), 0);
    cpu.retired = 4000;
    assert_eq!(cpu.tsc(), 10_000, "a nanosecond each");
    std::thread::sleep(std::time::Duration::from_millis(2));
    assert_eq!(cpu.tsc(), 10_000, "the host's time is nothing to it");

    let (source, tsc) = (Source::executed(), Tsc::of_host());
    source.asleep(|| std::thread::sleep(std::time::Duration::from_millis(20)));
    assert!(source.ticks(tsc, 0) >= u64::from(tsc.khz) * 19, "but asleep it counts");
}

#[test]
fn unknown_registers_and_bad_values_are_refused() {
    let mut cpu = cpu();
    for number in [0xfe, 0x200, 0x48, 0xc001_0015, 0x6e1, 0xffff_ffff] {
        assert_eq!(cpu.read_msr(number), None, "{number:#x}");
        assert_eq!(cpu.write_msr(number, 0), None, "{number:#x}");
    }
    assert_eq!(cpu.write_msr(index::LSTAR, 1 << 47), None);
    assert_eq!(cpu.write_msr(index::PAT, 2), None);
    assert_eq!(cpu.write_msr(index::EFER, 1 << 12), None);
    assert_eq!(cpu.read_msr(0x802), None, "x2APIC is off");
}

#[test]
fn cpuid_tells_the_frequency_of_counter_and_timer() {
    for khz in [2_596_094u32, 4_500_000] {
        let ram = Arc::new(GuestRam::new(1 << 20).unwrap());
        let cpu = Cpu::member(ram, Processors::new(CpuModel { vcpus: 1, tsc: Tsc { khz } }), 0);
        let [denominator, numerator, crystal, _] = cpu.cpuid_leaf(0x15, 0);
        assert_eq!((denominator, numerator), (1, 1 << timer_shift(Tsc { khz })));
        assert_eq!(u64::from(crystal) * u64::from(numerator), u64::from(khz) * 1000);
    }
}

#[test]
fn state_survives_the_way_out_and_in() {
    let mut cpu = cpu();
    cpu.write_msr(index::LSTAR, 0x1234).unwrap();
    cpu.write_msr(index::KERNEL_GS_BASE, 0x7777_0000).unwrap();
    cpu.regs[3] = 42;
    cpu.interrupts.shared().apics.local(0).set_cr8(5);
    let state = cpu.give_state();
    let mut other = super::cpu();
    other.replace_state(&state);
    let (mut left, mut right) = (state, other.give_state());
    for state in [&mut left, &mut right] {
        state.msrs.retain(|(number, _)| *number != index::TSC);
    }
    assert_eq!(left, right);
}

proptest! {
    #[test]
    fn nothing_written_to_registers_is_more_than_refused(
        writes in proptest::collection::vec((0usize..8, any::<u32>(), any::<u64>()), 1..80)
    ) {
        let mut cpu = cpu();
        let known = [0x10, 0x1b, 0x277, 0x6e0, 0xc000_0080, 0x4b56_4d00, 0x4b56_4d01, 0x12, 0x11, 0xc000_0100];
        for (what, number, value) in writes {
            match what {
                0 => { let _ = cpu.write_msr(number, value); }
                1 => { let _ = cpu.write_msr(known[number as usize % known.len()], value); }
                2 => { let _ = cpu.write_msr(0x800 + (number & 0xff), value); }
                3 => { let _ = cpu.read_msr(number); let _ = cpu.read_msr(0x800 + (number & 0xff)); }
                4 => { cpu.cpuid_leaf(number, value as u32); }
                5 => { cpu.cpuid_leaf(number & 0x1f, value as u32); cpu.cpuid_leaf(0x4000_0000 + (number & 7), 0); }
                6 => {
                    let _ = cpu.store::<u32>(0xfec0_0000 + u64::from(number & 0xfff), value as u32);
                    let _ = cpu.store::<u32>(0xfee0_0000 + u64::from(number & 0xffc), value as u32);
                }
                _ => {
                    let _ = cpu.load::<u64>(0xfec0_0000 + u64::from(number & 0xfff));
                    let _ = cpu.load::<u16>(0xfee0_0000 + u64::from(number & 0xfff));
                    let _ = cpu.load::<u128>(0xfee0_0000 + u64::from(number & 0xfff));
                }
            }
            cpu.fault = None;
        }
    }
}
