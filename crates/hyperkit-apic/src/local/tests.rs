//! Tests of priorities, the timer and the registers.

use super::*;

fn enabled() -> LocalApic {
    let mut apic = LocalApic::new(3, 0);
    assert_eq!(apic.write(0xf0, 0x1ff, 0), Effect::None);
    apic
}

#[test]
fn higher_class_interrupts_a_lower_one_in_service() {
    let mut apic = enabled();
    apic.post(0x35, false);
    assert_eq!(apic.acknowledge(), Some(0x35));
    apic.post(0x3f, false);
    assert_eq!(apic.pending(), None, "same class");
    apic.post(0x41, false);
    assert_eq!(apic.acknowledge(), Some(0x41));
    assert_eq!(apic.read(0xa0, 0), 0x40, "PPR is the class in service");
    assert_eq!(apic.end_of_interrupt(), Effect::None);
    assert_eq!(apic.pending(), None);
    assert_eq!(apic.end_of_interrupt(), Effect::None);
    assert_eq!(apic.acknowledge(), Some(0x3f));
}

#[test]
fn task_priority_holds_back_its_class_and_below() {
    let mut apic = enabled();
    apic.post(0x52, false);
    apic.set_cr8(5);
    assert_eq!(apic.pending(), None);
    assert_eq!(apic.read(0x80, 0), 0x50);
    apic.set_cr8(4);
    assert_eq!(apic.pending(), Some(0x52));
}

#[test]
fn software_disabled_apic_takes_no_interrupts_and_masks_the_lvt() {
    let mut apic = enabled();
    let _ = apic.write(0x320, 0x40, 0);
    let _ = apic.write(0xf0, 0xff, 0);
    assert!(!apic.post(0x50, false));
    assert_eq!(apic.read(0x320, 0), 0x1_0040);
    let _ = apic.write(0x320, 0x40, 0);
    assert_eq!(apic.read(0x320, 0), 0x1_0040, "stays masked while disabled");
}

#[test]
fn only_level_interrupts_tell_their_end() {
    let mut apic = enabled();
    apic.post(0x60, true);
    apic.acknowledge();
    assert_eq!(apic.write(0xb0, 0, 0), Effect::EndOfInterrupt(0x60));
    apic.post(0x60, false);
    apic.acknowledge();
    assert_eq!(apic.write(0xb0, 0, 0), Effect::None);
}

#[test]
fn one_shot_timer_fires_once_after_count_times_divisor() {
    let mut apic = enabled();
    let _ = apic.write(0x320, 0x40, 0);
    let _ = apic.write(0x3e0, 3, 0); // divide by 16
    let _ = apic.write(0x380, 100, 1000);
    assert_eq!(apic.deadline(), Some(2600));
    assert_eq!(apic.read(0x390, 1800), 50);
    assert!(!apic.expire(2599));
    assert!(apic.expire(2600));
    assert_eq!(apic.acknowledge(), Some(0x40));
    assert_eq!(apic.deadline(), None);
    assert_eq!(apic.read(0x390, 3000), 0);
}

#[test]
fn periodic_timer_keeps_its_phase_when_periods_are_missed() {
    let mut apic = enabled();
    let _ = apic.write(0x320, 0x2_0040, 0);
    let _ = apic.write(0x3e0, 0xb, 0); // divide by 1
    let _ = apic.write(0x380, 100, 1000);
    assert!(apic.expire(1350));
    assert_eq!(apic.deadline(), Some(1400));
}

#[test]
fn tsc_deadline_fires_and_clears_itself() {
    let mut apic = enabled();
    apic.set_tsc_deadline(500);
    assert_eq!(apic.tsc_deadline(), 0, "not in that mode");
    let _ = apic.write(0x320, 0x4_0040, 0);
    apic.set_tsc_deadline(500);
    assert_eq!((apic.deadline(), apic.tsc_deadline()), (Some(500), 500));
    assert!(apic.expire(500));
    assert_eq!(apic.tsc_deadline(), 0);
    apic.set_tsc_deadline(900);
    apic.set_tsc_deadline(0);
    assert_eq!(apic.deadline(), None);
}

#[test]
fn masked_timer_runs_out_without_an_interrupt() {
    let mut apic = enabled();
    let _ = apic.write(0x380, 10, 0);
    assert!(!apic.expire(1000));
    assert_eq!(apic.pending(), None);
}

#[test]
fn x2apic_registers_are_model_specific_and_strict() {
    let mut apic = enabled();
    assert_eq!(apic.read_msr(0x802, 0), Err(NoSuchRegister));
    apic.set_base(0xfee0_0c00).unwrap();
    assert_eq!(apic.window(), None);
    assert_eq!(apic.read_msr(0x802, 0), Ok(3));
    assert_eq!(apic.read_msr(0x80d, 0), Ok(8));
    assert_eq!(apic.write_msr(0x80b, 1, 0), Err(NoSuchRegister));
    assert_eq!(apic.write_msr(0x80b, 0, 0), Ok(Effect::None));
    assert_eq!(apic.read_msr(0x8ff, 0), Err(NoSuchRegister));
    assert_eq!(apic.set_base(0xfee0_0800), Err(NoSuchRegister), "not back to xAPIC without a reset");
    let sent = apic.write_msr(0x830, 2 << 32 | 0x45, 0).unwrap();
    let Effect::Send(message) = sent else { panic!("{sent:?}") };
    assert_eq!((message.to, message.vector), (crate::Destination::Physical(2), 0x45));
}

#[test]
fn illegal_vector_is_noted_in_the_error_status() {
    let mut apic = enabled();
    assert_eq!(apic.write(0x300, 0x05, 0), Effect::None);
    let _ = apic.write(0x280, 0, 0);
    assert_eq!(apic.read(0x280, 0), 0x20);
    let _ = apic.write(0x280, 0, 0);
    assert_eq!(apic.read(0x280, 0), 0);
}

#[test]
fn logical_addresses_match_flat_and_in_clusters() {
    let mut apic = enabled();
    let _ = apic.write(0xd0, 0x2400_0000, 0);
    assert!(apic.matches_logical(0x04) && !apic.matches_logical(0x48 & 0x18));
    let _ = apic.write(0xe0, 0, 0);
    assert!(apic.matches_logical(0x24) && !apic.matches_logical(0x14) && !apic.matches_logical(0x22));
}

proptest::proptest! {
    #[test]
    fn any_sequence_of_accesses_is_survived(accesses in proptest::collection::vec(
        (0u8..6, 0u32..0x1000, proptest::num::u64::ANY), 1..60)) {
        let mut apic = LocalApic::new(1, 0);
        let mut now = 0u64;
        for (what, at, value) in accesses {
            now = now.wrapping_add(value & 0xffff);
            match what {
                0 => { let _ = apic.write(u64::from(at), value as u32, now); }
                1 => { apic.read(u64::from(at), now); }
                2 => { let _ = apic.write_msr(0x800 + (at & 0xff), value, now); }
                3 => { let _ = apic.read_msr(0x800 + (at & 0xff), now); }
                4 => { let _ = apic.set_base(value); }
                _ => { apic.post(value as u8, at & 1 != 0); apic.expire(now); apic.acknowledge(); }
            }
        }
    }
}
