//! What one op of each kind costs, decoding and the run loop aside: `cargo run --release
//! -p hyperkit-soft --example op_speed`.

use std::sync::Arc;
use std::time::Instant;

use hyperkit_mem::GuestRam;
use hyperkit_soft::cpu::{CodeSize, Cpu};
use hyperkit_soft::decode::{Context, lower};
use iced_x86::{Decoder, DecoderOptions};

/// Instructions with RAX pointing at memory.
const INSTRUCTIONS: &[(&str, &[u8])] = &[
    ("add rcx, rdx", &[0x48, 0x01, 0xd1]),
    ("movdqu xmm1, [rax]", &[0xf3, 0x0f, 0x6f, 0x08]),
    ("movaps [rax], xmm1", &[0x0f, 0x29, 0x08]),
    ("pxor xmm1, xmm2", &[0x66, 0x0f, 0xef, 0xca]),
    ("pcmpeqb xmm1, [rax]", &[0x66, 0x0f, 0x74, 0x08]),
    ("pmovmskb ecx, xmm1", &[0x66, 0x0f, 0xd7, 0xc9]),
    ("pshufd xmm1, xmm2, 27", &[0x66, 0x0f, 0x70, 0xca, 0x1b]),
    ("movq rcx, xmm1", &[0x66, 0x48, 0x0f, 0x7e, 0xc9]),
    ("addsd xmm1, xmm2", &[0xf2, 0x0f, 0x58, 0xca]),
    ("mulsd xmm1, [rax]", &[0xf2, 0x0f, 0x59, 0x08]),
    ("ucomisd xmm1, xmm2", &[0x66, 0x0f, 0x2e, 0xca]),
    ("cvtsi2sd xmm1, rcx", &[0xf2, 0x48, 0x0f, 0x2a, 0xc9]),
    ("cvttsd2si rcx, xmm1", &[0xf2, 0x48, 0x0f, 0x2c, 0xc9]),
    ("paddb mm1, mm2", &[0x0f, 0xfc, 0xca]),
    ("fadd st(0), st(0)", &[0xd8, 0xc0]),
    ("fst qword [rax]", &[0xdd, 0x10]),
    ("fxch st(1)", &[0xd9, 0xc9]),
    ("fnstcw [rax]", &[0xd9, 0x38]),
    ("fldcw [rax+64]", &[0xd9, 0x68, 0x40]),
    ("fxsave64 [rax]", &[0x48, 0x0f, 0xae, 0x00]),
];

const REPEATS: u32 = 2_000_000;

#[expect(clippy::print_stdout, reason = "the measurement goes to stdout")]
fn main() {
    let ram = Arc::new(GuestRam::new(1 << 20).expect("one MiB"));
    for (name, bytes) in INSTRUCTIONS {
        let mut cpu = Cpu::for_tests(Arc::clone(&ram));
        cpu.regs[0] = 0x1000;
        cpu.fx.0[4] = 0xff;
        cpu.store(0x1040, 0x37fu16).expect("RAM");
        let instruction = Decoder::with_ip(64, bytes, 0x100, DecoderOptions::NONE).decode();
        let op = lower(&instruction, &Context { block_rip: 0x100, code_size: CodeSize::Bits64 });
        let best = (0..5).map(|_| {
            let began = Instant::now();
            (0..REPEATS / 5).for_each(|_| {
                let _ = (std::hint::black_box(op.run))(&mut cpu, std::hint::black_box(&op));
            });
            began.elapsed().as_secs_f64() * 1e9 / f64::from(REPEATS / 5)
        });
        println!("{:6.1} ns  {name}", best.fold(f64::MAX, f64::min));
    }
}
