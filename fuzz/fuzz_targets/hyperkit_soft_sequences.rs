//! Programs like compilers' from the fuzzer's choices: interpreted and translated they must end alike, if they do.
#![no_main]

#[path = "../../crates/hyperkit-soft/tests/sequences/generate.rs"]
mod generate;
#[path = "../../crates/hyperkit-soft/tests/sequences/machine.rs"]
mod machine;

use hyperkit_soft::jit::Tiers;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|choices: &[u8]| {
    let program = generate::program(&mut generate::Choices(choices));
    let expected = machine::run(&program, Tiers::INTERPRETER);
    if expected.fault.is_none() {
        // One that overwrote its own return goes on for ever, and is stopped wherever a block ends.
        return;
    }
    for tiers in [Tiers::FORCED, Tiers { translate_after: Some(3), ..Tiers::BOTH }] {
        assert!(machine::run(&program, tiers) == expected, "{tiers:?}: {}\n{:02x?}", program.text, program.code);
    }
});
