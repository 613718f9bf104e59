//! Tests of page walks, faults and the slow paths.

use std::sync::Arc;

use hyperkit_mem::{GuestAddr, GuestRam};

use crate::cpu::Cpu;

fn ram() -> Arc<GuestRam> {
    Arc::new(GuestRam::new(8 << 20).unwrap())
}

#[test]
fn without_paging_linear_addresses_are_physical() {
    let ram = ram();
    let mut cpu = Cpu::for_tests(Arc::clone(&ram));
    cpu.store::<u64>(0x1ffc, 0x1122_3344_5566_7788).unwrap();
    assert_eq!(ram.read_u64(GuestAddr(0x1ffc)).unwrap(), 0x1122_3344_5566_7788);
    assert_eq!(cpu.load::<u128>(0x1ff8).unwrap(), 0x1122_3344_5566_7788 << 32);
    assert_eq!(cpu.fetch_page(0x3123).unwrap().phys, 0x3000);
    assert_eq!(cpu.load::<u32>(64 << 20).unwrap(), u32::MAX, "no RAM and no device there");
}
