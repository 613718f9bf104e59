//! Loops that `cargo xtask bench cpu` times inside a guest, and on the host.
//!
//! The variable `loops` names those to run, separated by commas. Prints `begin NAME` and `loop NAME NANOSECONDS` for
//! each; as PID 1 it powers the machine off afterwards.

mod floats;

use std::arch::asm;
use std::io::Write;
use std::time::Instant;

/// Entries of the list that is chased: 16 KiB of pointers, so that a load costs what the processor makes of it.
const CHASE_ENTRIES: usize = 1 << 11;

/// A loop; what it gives is printed, so that it is computed.
type Loop = fn() -> u64;

/// All of them.
const LOOPS: &[(&str, Loop)] = &[
    ("integer", integer),
    ("calls", calls),
    ("chase", chase),
    ("nbody", floats::nbody),
    ("mandelbrot", floats::mandelbrot),
    ("matrix", floats::matrix),
    ("threads", threads),
];

fn main() {
    let wanted = std::env::var("loops").unwrap_or_default();
    let mut out = std::io::stdout();
    for (name, body) in LOOPS.iter().filter(|(name, _)| wanted.split(',').any(|word| word == *name)) {
        let _ = writeln!(out, "begin {name}\r");
        let began = Instant::now();
        let result = std::hint::black_box(body());
        let _ = writeln!(out, "loop {name} {}\r", began.elapsed().as_nanos());
        let _ = writeln!(out, "result {result}\r");
    }
    let _ = out.flush();
    if std::process::id() == 1 {
        let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    }
}

/// Two threads of the integer loop.
fn threads() -> u64 {
    let other = std::thread::spawn(integer);
    integer().wrapping_add(other.join().unwrap_or(0))
}

/// 20 million turns of 21 instructions: arithmetic, a conditional move, a multiplication, stack and array traffic.
fn integer() -> u64 {
    let mut array = [0u64; 64];
    let result: u64;
    // SAFETY: the loop reads and writes `array` within its bounds (index masked to 63) and balances its pushes.
    unsafe {
        asm!(
            "2:",
            "mov {i}, {n}",
            "and {i}, 63",
            "mov {t}, [{a} + {i}*8]",
            "add {t}, {n}",
            "mov {u}, {t}",
            "shr {u}, 7",
            "xor {t}, {u}",
            "imul {t}, {t}, 31",
            "mov [{a} + {i}*8], {t}",
            "cmp {t}, {s}",
            "cmovb {s}, {t}",
            "add {s}, {t}",
            "lea {u}, [{s} + {t}*2 + 5]",
            "push {u}",
            "sub {s}, {u}",
            "pop {u}",
            "xor {s}, {u}",
            "add {s}, [{a} + 8]",
            "test {u}, 1",
            "dec {n}",
            "jnz 2b",
            a = in(reg) array.as_mut_ptr(),
            n = inout(reg) 20_000_000u64 => _,
            s = inout(reg) 1u64 => result,
            i = out(reg) _, t = out(reg) _, u = out(reg) _,
        );
    }
    result
}

/// fib(32) by recursion: about 63 million instructions, most of them calls, returns, pushes and pops.
fn calls() -> u64 {
    let result: u64;
    // SAFETY: the recursion uses the stack below the red zone's end and returns balanced.
    unsafe {
        asm!(
            "sub rsp, 128",
            "mov rdi, 32",
            "call 3f",
            "add rsp, 128",
            "jmp 5f",
            "3:",
            "cmp rdi, 2",
            "jb 4f",
            "push rdi",
            "dec rdi",
            "call 3b",
            "pop rdi",
            "push rax",
            "sub rdi, 2",
            "call 3b",
            "pop rcx",
            "add rax, rcx",
            "ret",
            "4:",
            "mov rax, rdi",
            "ret",
            "5:",
            out("rax") result, out("rdi") _, out("rcx") _,
        );
    }
    result
}

/// 44 million dependent loads through a shuffled ring, five instructions each.
fn chase() -> u64 {
    let mut ring: Vec<u64> = vec![0; CHASE_ENTRIES];
    // A step coprime to the size visits every entry, never the next line.
    let mut at = 0;
    for _ in 0..CHASE_ENTRIES {
        let next = (at + 100_003) % CHASE_ENTRIES;
        ring[at] = next as u64;
        at = next;
    }
    let result: u64;
    // SAFETY: every entry of the ring is an index into it.
    unsafe {
        asm!(
            "2:",
            "mov {i}, [{a} + {i}*8]",
            "add {s}, {i}",
            "test {i}, {i}",
            "dec {n}",
            "jnz 2b",
            a = in(reg) ring.as_ptr(),
            n = inout(reg) 44_000_000u64 => _,
            s = inout(reg) 0u64 => result,
            i = inout(reg) 0u64 => _,
        );
    }
    result
}
