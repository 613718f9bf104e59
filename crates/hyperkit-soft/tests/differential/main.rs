//! The differential test: every unprivileged instruction form that the processor offers in 64-bit mode, from random
//! states, against the host's own processor.
//!
//! Registers, RIP, flags (but those that the SDM leaves undefined), x87, SSE and memory must come out the same, and
//! so must exceptions. `DIFFERENTIAL_ROUNDS` says how many states each form gets, `DIFFERENTIAL_SEED` which,
//! `DIFFERENTIAL_ONLY` which forms (part of the name of their iced `Code`).
//!
//! What is left out is said, with the reason, in `exempt.rs`, and counted in the report. FIP, FDP and FOP are not
//! compared: processors differ in when they keep them.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]

mod cases;
mod exempt;
mod forms;
mod guest;
mod native;
mod programs;
mod random;
mod state;

use std::collections::BTreeMap;
use std::fmt::Write;

use forms::{Form, Instance};
use guest::Guest;
use hyperkit_soft::jit::Tiers;
use native::Native;
use random::Random;
use state::Outcome;

/// Where the test's memory is, on the host and in the guest.
pub const BASE: u64 = 0x200_0000;
/// Its size.
pub const BYTES: usize = 0x1_0000;
/// Where breakpoints begin; the instruction is among them.
pub const BREAKPOINTS: usize = 0xd000;
/// Where memory operands begin …
pub const DATA: u64 = BASE + 0x2000;
/// … and the room they have.
pub const DATA_BYTES: u64 = 0x2000;
/// About where the stack pointer is.
pub const STACK: u64 = BASE + 0x9000;
/// Where the instruction is.
pub const CODE: u64 = BASE + 0xe000;

/// States for each form by default.
const ROUNDS: u64 = 150;
/// Forms that must have run, or the test has lost part of what it is for.
const FORMS_MIN: usize = 1900;
/// Failures shown for each form.
const SHOWN: usize = 2;

/// What happened to a form.
enum Verdict {
    Agreed,
    Differed(String),
    NotOffered,
    NotEncodable,
}

struct Bench {
    native: Native,
    guest: Guest,
    rounds: u64,
    tiers: Tiers,
}

impl Bench {
    fn new(rounds: u64, tiers: Tiers, random: &mut Random) -> Bench {
        let mut bench = Bench { native: Native::new(), guest: Guest::new(tiers), rounds, tiers };
        let native = bench.native.memory();
        native.iter_mut().for_each(|byte| *byte = random.next() as u8);
        native[BREAKPOINTS..].fill(0xcc);
        bench.guest.memory().copy_from_slice(bench.native.memory());
        bench
    }

    fn check(&mut self, form: Form, random: &mut Random) -> Verdict {
        let mut failures = Vec::new();
        let mut ran = false;
        for _ in 0..self.rounds {
            let Some(mut built) = (0..20).find_map(|_| forms::instance(form, random)) else {
                return Verdict::NotEncodable;
            };
            if !self.guest.offers(&built.bytes) {
                return Verdict::NotOffered;
            }
            ran = true;
            let seed = random.0;
            if let Some(difference) = self.compare(&mut built, random) {
                failures.push(format!(
                    "  {:02x?} {:?} (state {seed:#x})\n{difference}",
                    built.bytes,
                    built.instruction.code()
                ));
            }
        }
        assert!(ran, "at least one round");
        if failures.is_empty() {
            return Verdict::Agreed;
        }
        let (count, rounds) = (failures.len(), self.rounds);
        failures.truncate(SHOWN);
        Verdict::Differed(format!("{form:?}: {count} of {rounds} differ\n{}", failures.join("")))
    }

    /// Runs a program on both from a few states; says how they differ.
    fn compare_program(&mut self, program: &programs::Program, random: &mut Random) -> Option<String> {
        let code = (CODE - BASE) as usize;
        let native = &mut self.native.memory()[code..code + 0x100];
        native.fill(0xcc);
        native[..program.bytes.len()].copy_from_slice(&program.bytes);
        self.guest.load_program(&program.bytes);
        for _ in 0..RUNS {
            let before = cases::program_state(random);
            let host = self.native.run(&before);
            let ours = self.guest.run_program(&before);
            let undefined =
                state::Undefined { rflags: program.undefined_rflags, ..state::Undefined::default() };
            let mut text = host.differences(&ours, undefined);
            let (theirs, mine) = (self.native.memory(), self.guest.memory());
            if theirs != mine {
                let at = (0..BYTES).find(|at| theirs[*at] != mine[*at]).expect("they differ");
                let _ = writeln!(text, "    memory at {:#x}", BASE + at as u64);
            }
            if !text.is_empty() {
                self.guest = Guest::new(self.tiers);
                self.guest.load_program(&program.bytes);
                let alone = self.guest.run_program(&before);
                let known = if alone.agrees(&ours, undefined) { "the same" } else { "something else" };
                let _ = writeln!(text, "    alone, ours does {known}; before:");
                return Some(text + &before.differences(&host, undefined));
            }
        }
        None
    }

    /// Runs an instance on both; says how they differ.
    fn compare(&mut self, built: &mut Instance, random: &mut Random) -> Option<String> {
        let (before, pokes) = cases::starting_state(built, random);
        let code = (CODE - BASE) as usize;
        self.native.memory()[code..code + built.bytes.len()].copy_from_slice(&built.bytes);
        for (at, bytes) in &pokes {
            let at = (at - BASE) as usize;
            self.native.memory()[at..at + bytes.len()].copy_from_slice(bytes);
            self.guest.memory()[at..at + bytes.len()].copy_from_slice(bytes);
        }
        let host = self.native.run(&before);
        let ours = self.guest.run(&before, &built.bytes);
        self.native.memory()[code..code + built.bytes.len()].fill(0xcc);

        if host.outcome == Outcome::Done {
            exempt::even_out(built, &before, self.native.memory(), self.guest.memory());
        }
        let undefined = exempt::undefined(&built.instruction, &before, &host);
        let mut text = host.differences(&ours, undefined);
        let (theirs, mine) = (self.native.memory(), self.guest.memory());
        if theirs != mine {
            let at = (0..BYTES).find(|at| theirs[*at] != mine[*at]).expect("they differ");
            let end = (at + 16).min(BYTES);
            let (host, ours) = (&theirs[at..end], &mine[at..end]);
            let at = BASE + at as u64;
            let _ = writeln!(text, "    memory at {at:#x}\n      host {host:02x?}\n      ours {ours:02x?}");
            mine[BREAKPOINTS..].fill(0xcc);
            theirs.copy_from_slice(mine);
        }
        if text.is_empty() {
            return None;
        }
        let _ = writeln!(
            text,
            "    before {}",
            before.differences(&host, state::Undefined::default()).replace('\n', "\n    ")
        );
        Some(text)
    }
}

/// Random programs by default; each runs from a few states.
const PROGRAMS: u64 = 10_000;
/// States for each.
const RUNS: u64 = 4;

#[test]
fn short_programs_do_what_they_do_on_the_host() {
    check_programs(Tiers::INTERPRETER);
}

#[test]
fn translated_programs_do_what_they_do_on_the_host() {
    check_programs(Tiers::FORCED);
}

#[test]
fn programs_translated_without_bmi2_and_fsgsbase_do_what_they_do_on_the_host() {
    check_programs(Tiers::PLAIN);
}

#[test]
fn programs_whose_translations_are_dropped_all_the_time_do_what_they_do_on_the_host() {
    check_programs(Tiers::CRAMPED);
}

fn check_programs(tiers: Tiers) {
    let seed = setting("DIFFERENTIAL_SEED", 1);
    let count = setting("DIFFERENTIAL_PROGRAMS", PROGRAMS);
    let mut random = Random(seed);
    let mut bench = Bench::new(1, tiers, &mut random);
    let usable: Vec<Form> = forms::all().into_iter().filter(|form| programs::usable(*form)).collect();
    let jumps: Vec<Form> = usable.iter().copied().filter(|form| form.code.is_jcc_short_or_near()).collect();
    assert!(usable.len() > 1000 && jumps.len() >= 32, "{} forms, {} jumps", usable.len(), jumps.len());
    for n in 0..count {
        let program = programs::random(&usable, &jumps, &mut random);
        if let Some(text) = bench.compare_program(&program, &mut random) {
            panic!("program {n} of seed {seed}: {}\n{:02x?}\n{text}", program.text, program.bytes);
        }
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

#[test]
fn every_offered_form_does_what_the_host_does() {
    check_forms(Tiers::INTERPRETER);
}

#[test]
fn every_translated_form_does_what_the_host_does() {
    check_forms(Tiers::FORCED);
}

#[test]
fn every_form_translated_without_bmi2_and_fsgsbase_does_what_the_host_does() {
    check_forms(Tiers::PLAIN);
}

fn check_forms(tiers: Tiers) {
    let seed = setting("DIFFERENTIAL_SEED", 1);
    let rounds = setting("DIFFERENTIAL_ROUNDS", ROUNDS);
    let only = std::env::var("DIFFERENTIAL_ONLY").unwrap_or_default();
    let mut random = Random(seed);
    let mut bench = Bench::new(rounds, tiers, &mut random);
    let mut skipped: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut failures = Vec::new();
    let (mut agreed, mut not_offered, mut missing) = (0, Vec::new(), Vec::new());
    for form in forms::all() {
        let name = format!("{:?}", form.code);
        if !name.to_lowercase().contains(&only.to_lowercase()) {
            continue;
        }
        if let Some(reason) = exempt::skipped(form) {
            skipped.entry(reason).or_default().push(name);
            continue;
        }
        match bench.check(form, &mut random) {
            Verdict::Agreed => agreed += 1,
            Verdict::Differed(text) => failures.push(text),
            Verdict::NotOffered if exempt::intentionally_absent(form.code) => not_offered.push(name),
            Verdict::NotOffered => missing.push(name),
            Verdict::NotEncodable => skipped.entry("no instance can be encoded").or_default().push(name),
        }
    }
    report(seed, rounds, agreed, &failures, &skipped, &not_offered);
    assert!(missing.is_empty(), "not offered, though nothing says so: {}", missing.join(" "));
    assert!(failures.is_empty(), "{} forms differ from the host's processor", failures.len());
    assert!(agreed >= FORMS_MIN || !only.is_empty(), "only {agreed} forms ran");
}

#[expect(clippy::print_stdout, reason = "what was covered is part of the result")]
fn report(
    seed: u64,
    rounds: u64,
    agreed: usize,
    failures: &[String],
    skipped: &BTreeMap<&str, Vec<String>>,
    not_offered: &[String],
) {
    let mut text = String::new();
    failures.iter().for_each(|failure| text.push_str(failure));
    for (reason, names) in skipped {
        let _ = writeln!(text, "skipped {} forms, {reason}: {}", names.len(), names.join(" "));
    }
    let _ = writeln!(text, "not offered: {} forms: {}", not_offered.len(), not_offered.join(" "));
    let _ =
        writeln!(text, "{agreed} forms agree, {} differ ({rounds} states each, seed {seed})", failures.len());
    println!("{text}");
}
