//! Our own processor under Debian's programs that test processors: kernels started again and again, `stress-ng
//! --verify`, CPython's own tests, Go programs; and what each engine offers.
//!
//! `cargo xtask soak` runs the long forms: CORACLE_SOAK=1, and CORACLE_SOAK_COUNT, _CPUS, _SECONDS, _ONLY, _ENGINE to have
//! another amount than the usual one.

use std::fmt::Debug;
use std::str::FromStr;
use std::time::Instant;

use crate::{Done, Run, coracle, sh};

/// What the guest has for the quick tests.
pub const PACKAGES: &str = "python3,libpython3.11-testsuite,stress-ng,runc";

/// Families of stressors.
const STRESSORS: &str = "cpu,vm,context,fork,mmap,signal";

/// Modules of CPython's tests: what goes wrong when arithmetic, memory, threads, signals or system calls do.
const MODULES: &str = "test_int,test_float,test_struct,test_math,test_cmath,test_decimal,test_fractions,test_hashlib,\
test_zlib,test_re,test_bytes,test_unicode,test_list,test_dict,test_set,test_array,test_long,test_pow,test_complex,\
test_random,test_statistics,test_threading,test_thread,test_queue,test_signal,test_subprocess,test_fork1,test_mmap,\
test_binascii,test_bz2,test_lzma,test_pickle,test_json,test_time,test_strtod,test_tuple";
/// Those that take seconds.
const MODULES_QUICK: &str = "test_struct,test_cmath,test_binascii,test_fork1";

fn soaking() -> bool {
    asked::<u8>("").is_some_and(|value| value == 1)
}

/// What `cargo xtask soak` was told to do otherwise than usual.
fn asked<T: FromStr<Err: Debug>>(what: &str) -> Option<T> {
    let value = std::env::var(format!("CORACLE_SOAK{what}")).ok()?;
    Some(value.parse().unwrap_or_else(|error| panic!("CORACLE_SOAK{what}={value}: {error:?}")))
}

/// An amount: as asked for, or the usual one when soaking, or that of the quick test.
fn amount<T: FromStr<Err: Debug>>(what: &str, usual: T, quick: T) -> T {
    if soaking() { asked(what).unwrap_or(usual) } else { quick }
}

fn engine() -> String {
    asked("_ENGINE").unwrap_or_else(|| "soft".to_owned())
}

/// Runs a script in a guest with `packages`.
fn guest(packages: &str, cpus: u32, script: &str) -> Done {
    in_guest(packages, cpus, script).done()
}

/// The same, yet to be run.
pub fn in_guest(packages: &str, cpus: u32, script: &str) -> Run {
    let (engine, cpus) = (engine(), cpus.to_string());
    let limit = if soaking() { "3600s" } else { "170s" };
    let arguments = ["run", "--engine", &engine, "--cpus", &cpus, "--memory", "1G", "--timeout", limit];
    coracle(&[&arguments[..], &["--package", packages, "--", "sh", "-c", script]].concat())
}

/// Boots `times` with `cpus` processors; every one of them must come up and do something.
fn boots(times: usize, cpus: u32) {
    let (engine, cpus_flag) = (engine(), cpus.to_string());
    let flags = ["--engine", &engine, "--cpus", &cpus_flag];
    let began = Instant::now();
    for n in 0..times {
        let done =
            sh(&flags, "grep -c ^processor /proc/cpuinfo; dmesg | grep -ciE 'lockup|stall|BUG:|Oops'").done();
        assert_eq!(done.text(), format!("{cpus}\n0\n"), "boot {n} with {cpus} vCPUs: {}", done.stderr);
    }
    eprintln!("{times} boots with {cpus} vCPUs: {:.0} s", began.elapsed().as_secs_f64());
}

#[test]
fn the_kernel_starts_again_and_again() {
    for (cpus, usual, quick) in [(1, 200, 2), (2, 20, 1), (4, 20, 1)] {
        if asked("_CPUS").is_none_or(|wanted: u32| wanted == cpus) {
            boots(amount("_COUNT", usual, quick), cpus);
        }
    }
}

#[test]
fn stress_ng_verifies_what_it_computes() {
    let (seconds, cpus) = (amount("_SECONDS", 100, 1), amount("_CPUS", 2, 2));
    let families = amount("_ONLY", STRESSORS.to_owned(), STRESSORS.to_owned());
    let mut script = String::from("cd /tmp || exit 1\n");
    for stressor in families.split(',') {
        let more = if stressor == "vm" { "--vm-bytes 64M" } else { "" };
        script += &format!("stress-ng --verify --{stressor} 2 {more} -t {seconds} 2>&1 || exit 1\n");
    }
    script += "echo verified; dmesg | grep -ciE 'lockup|stall|BUG:|Oops'\n";
    let done = guest(PACKAGES, cpus, &script);
    // grep ends with 1 when it finds nothing, which is what is wanted.
    let said = done.text();
    assert!(said.ends_with("verified\n0\n"), "{said}\n{}", done.stderr);
    assert_eq!(said.matches("successful run completed").count(), families.split(',').count(), "{said}");
    assert!(!said.contains("fail:"), "{said}");
    println!("{families}, {seconds} s each, {cpus} vCPUs: verified");
}

#[test]
fn pythons_own_tests_pass() {
    let modules = amount("_ONLY", MODULES.to_owned(), MODULES_QUICK.to_owned());
    let cpus = amount("_CPUS", 1, 1);
    for module in modules.split(',') {
        let began = Instant::now();
        let script =
            format!("cd /tmp && python3 -m test --timeout 1200 {module} > out 2>&1 || tail -n 60 out");
        let said = guest(PACKAGES, cpus, &script).good();
        assert_eq!(said, "", "{module} fails with {cpus} vCPUs");
        println!("{module}: passed, {:.0} s", began.elapsed().as_secs_f64());
    }
}

#[test]
fn the_tiers_agree_through_a_whole_boot() {
    if !soaking() {
        println!("SKIP: not soaking, and a boot in lockstep takes minutes on a busy host");
        return;
    }
    let script = "echo $((6 * 7)); seq 2000 | sha256sum; uname -s";
    let native = std::process::Command::new("sh").args(["-c", script]).output().unwrap();
    let flags = ["run", "--engine", "soft:lockstep", "--timeout", "3600s", "--", "sh", "-c", script];
    let done = coracle(&flags).done();
    assert_eq!(done.good(), String::from_utf8(native.stdout).unwrap());
}

/// Flags of /proc/cpuinfo of which AVX and its kin consist.
const WIDE: [&str; 7] = ["avx", "avx2", "fma", "f16c", "vaes", "vpclmulqdq", "xsave"];

fn flags_of(cpuinfo: &str) -> Vec<&str> {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).expect("there are flags");
    flags.split_whitespace().collect()
}

#[test]
fn wide_vectors_are_offered_where_the_host_has_them_and_never_by_the_interpreter() {
    let host = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    for (engine, offers) in [("soft", true), ("soft:interp", false)] {
        let said = sh(&["--engine", engine], "grep -m 1 ^flags /proc/cpuinfo").done().good();
        let guest = flags_of(&said);
        assert!(guest.contains(&"sse4_2"), "{engine}: {guest:?}");
        for flag in WIDE {
            let wanted = offers && flags_of(&host).contains(&flag);
            assert_eq!(guest.contains(&flag), wanted, "{flag} with {engine}");
        }
    }
}

#[test]
fn a_go_program_says_its_version() {
    let said =
        guest(PACKAGES, 2, "runc --version && GOMAXPROCS=4 GOGC=1 runc --help | grep -c container").good();
    assert!(said.starts_with("runc version 1.") && said.contains("go: go1."), "{said}");
}

/// Starts goroutines, makes garbage, divides, formats floats, recovers from a null pointer.
const GO_PROGRAM: &str = r#"package main

import (
	"crypto/sha256"
	"fmt"
	"math"
	"math/big"
	"sort"
	"strings"
	"sync"
)

func recovered() (message string) {
	defer func() { message = fmt.Sprint(recover()) }()
	var none *struct{ field int }
	return fmt.Sprint(none.field)
}

func main() {
	var group sync.WaitGroup
	var lock sync.Mutex
	sums := map[int]float64{}
	for worker := 0; worker < 16; worker++ {
		group.Add(1)
		go func(worker int) {
			defer group.Done()
			sum := 0.0
			for i := 1; i < 20000; i++ {
				text := strings.Repeat("x", i%50)
				sum += math.Sqrt(float64(i)) / float64(len(text)+worker+1)
			}
			lock.Lock()
			sums[worker] = sum
			lock.Unlock()
		}(worker)
	}
	group.Wait()
	keys := []int{}
	for key := range sums {
		keys = append(keys, key)
	}
	sort.Ints(keys)
	for _, key := range keys {
		fmt.Printf("%d %.12g\n", key, sums[key])
	}
	product := big.NewInt(1)
	for i := int64(2); i < 300; i++ {
		product.Mul(product, big.NewInt(i))
	}
	fmt.Printf("%x\n", sha256.Sum256(product.Bytes()))
	fmt.Println(recovered())
}
"#;

#[test]
fn gos_compiler_and_what_it_makes_agree_with_the_host() {
    if !soaking() {
        println!("SKIP: not soaking, and Go's compiler is large");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("main.go"), GO_PROGRAM).unwrap();
    let volume = format!("{}:/work", folder.path().display());
    let engine = engine();
    // The program is static, so the host can run the very same one.
    let script = "cd /work && export HOME=/tmp GOCACHE=/tmp/cache GO111MODULE=off CGO_ENABLED=0 && \
                  go build -o program main.go && ./program && gofmt -l . && \
                  find /usr/lib/go-1.19/src/fmt /usr/share/go-1.19/src/fmt -name '*.go' | xargs gofmt -l | wc -l";
    let flags = ["run", "--engine", &engine, "--cpus", "2", "--memory", "2G", "--timeout", "3000s"];
    let guest = ["--package", "golang-go", "-v", &volume, "--", "sh", "-c", script];
    let said = coracle(&[&flags[..], &guest[..]].concat()).done().good();
    let native = std::process::Command::new(folder.path().join("program")).output().unwrap();
    let native = String::from_utf8(native.stdout).unwrap();
    assert!(native.contains("nil pointer dereference"), "{native}");
    assert_eq!(said, format!("{native}0\n"));
}
