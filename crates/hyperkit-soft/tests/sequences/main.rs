//! Interpreter and translator in step: generated programs must end in the same registers, flags, memory, exception and
//! count of instructions, whichever tier runs them. `SEQUENCES` says how many programs, `SEQUENCES_SEED` which.
//!
//! `fuzz/fuzz_targets/hyperkit_soft_sequences.rs` does the same with a fuzzer's choices.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod calls;
mod generate;
mod lockstep;
mod machine;

use generate::Choices;
use hyperkit_soft::jit::Tiers;

/// Programs by default: about ten seconds.
const PROGRAMS: u64 = 3_000;
/// Bytes of choices for each.
const CHOICES: usize = 1 << 10;

/// How programs are translated, beside the interpreter.
const WAYS: [Tiers; 4] =
    [Tiers::FORCED, Tiers { translate_after: Some(3), ..Tiers::BOTH }, Tiers::PLAIN, Tiers::CRAMPED];

/// A number from the environment.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// SplitMix64.
pub fn choices(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0xd134_2543_de82_ef95);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).to_le_bytes()
    };
    (0..CHOICES / 8).flat_map(|_| next()).collect()
}

#[test]
fn tiers_agree_on_generated_programs() {
    let seed = setting("SEQUENCES_SEED", 1);
    let (mut whole, mut faulted) = (0, 0);
    for n in 0..setting("SEQUENCES", PROGRAMS) {
        let bytes = choices(seed + n);
        let program = generate::program(&mut Choices(&bytes));
        let expected = machine::run(&program, Tiers::INTERPRETER);
        assert!(expected.fault.is_some(), "program {n} of seed {seed} does not end: {}", program.text);
        if expected.fault.is_some_and(|(_, vector, _)| vector == 6) {
            whole += 1;
        } else {
            faulted += 1;
        }
        for tiers in WAYS {
            let got = machine::run(&program, tiers);
            if got != expected {
                panic!("program {n} of seed {seed}, {tiers:?}: {}", difference(&program, &expected, &got));
            }
        }
    }
    // Both ways to end must have been seen often, or the programs are not what they are meant to be.
    assert!(whole.min(faulted) > (whole + faulted) / 10, "{whole} ran to their end, {faulted} faulted");
}

fn difference(program: &generate::Program, expected: &machine::End, got: &machine::End) -> String {
    let mut text = format!("{}\n{:02x?}\nstart {:x?}\n", program.text, program.code, program.registers);
    for (name, a, b) in [
        ("fault", format!("{:x?}", expected.fault), format!("{:x?}", got.fault)),
        ("cr2", format!("{:x}", expected.cr2), format!("{:x}", got.cr2)),
        ("registers", format!("{:x?}", expected.registers), format!("{:x?}", got.registers)),
        ("rflags", format!("{:x}", expected.rflags), format!("{:x}", got.rflags)),
        ("retired", expected.retired.to_string(), got.retired.to_string()),
    ] {
        if a != b {
            text += &format!("{name}\n  interpreted {a}\n  translated  {b}\n");
        }
    }
    if expected.vectors != got.vectors {
        let at = (0..expected.vectors.len()).find(|at| expected.vectors[*at] != got.vectors[*at]);
        text += &format!("vectors differ at {at:?}\n");
    }
    if expected.memory != got.memory {
        let at = (0..expected.memory.len()).find(|at| expected.memory[*at] != got.memory[*at]);
        text += &format!("memory differs at {:x?}\n", at.unwrap_or(0));
    }
    text
}
