//! Our own processor under Debian's programs that test processors: kernels started again and again, `stress-ng
//! --verify`, CPython's own tests, Go programs.
//!
//! With `CORACLE_SOAK=1` all of it: 200 boots, ten minutes of `stress-ng`, thirty modules of CPython's tests, Go's
//! compiler. `CORACLE_SOAK_ENGINE` names another engine than `soft`.

use crate::{Done, coracle, sh};

/// What the guest has for the quick tests.
const PACKAGES: &str = "python3,libpython3.11-testsuite,stress-ng,runc";

/// Modules of CPython's tests: what goes wrong when arithmetic, memory, threads, signals or system calls do.
const MODULES: &str = "test_int test_float test_struct test_math test_cmath test_decimal test_fractions test_hashlib \
test_zlib test_re test_bytes test_str test_list test_dict test_set test_array test_long test_pow test_complex \
test_random test_statistics test_threading test_thread test_queue test_signal test_subprocess test_fork1 test_mmap \
test_binascii test_bz2 test_lzma test_pickle test_json test_time test_strtod test_tuple";
/// Those that take seconds.
const MODULES_QUICK: &str = "test_struct test_cmath test_binascii test_fork1";

fn soaking() -> bool {
    std::env::var_os("CORACLE_SOAK").is_some_and(|value| value == "1")
}

fn engine() -> String {
    std::env::var("CORACLE_SOAK_ENGINE").unwrap_or_else(|_| "soft".to_owned())
}

/// Runs a script in a guest with `packages`.
fn guest(packages: &str, cpus: u32, script: &str) -> Done {
    let (engine, cpus) = (engine(), cpus.to_string());
    let limit = if soaking() { "3600s" } else { "170s" };
    let arguments = ["run", "--engine", &engine, "--cpus", &cpus, "--memory", "1G", "--timeout", limit];
    coracle(&[&arguments[..], &["--package", packages, "--", "sh", "-c", script]].concat()).done()
}

/// Boots `times` with `cpus` processors; every one of them must come up and do something.
fn boots(times: usize, cpus: u32) {
    let (engine, cpus_flag) = (engine(), cpus.to_string());
    let flags = ["--engine", &engine, "--cpus", &cpus_flag];
    for n in 0..times {
        let done =
            sh(&flags, "grep -c ^processor /proc/cpuinfo; dmesg | grep -ciE 'lockup|stall|BUG:|Oops'").done();
        assert_eq!(done.text(), format!("{cpus}\n0\n"), "boot {n} with {cpus} vCPUs: {}", done.stderr);
    }
}

#[test]
fn the_kernel_starts_again_and_again() {
    boots(if soaking() { 200 } else { 2 }, 1);
}

#[test]
fn the_kernel_starts_again_and_again_on_several_processors() {
    for cpus in [2, 4] {
        boots(if soaking() { 20 } else { 1 }, cpus);
    }
}

#[test]
fn stress_ng_verifies_what_it_computes() {
    let seconds = if soaking() { 100 } else { 1 };
    let mut script = String::from("cd /tmp || exit 1\n");
    for stressor in ["cpu", "vm", "context", "fork", "mmap", "signal"] {
        let more = if stressor == "vm" { "--vm-bytes 64M" } else { "" };
        script += &format!("stress-ng --verify --{stressor} 2 {more} -t {seconds} 2>&1 || exit 1\n");
    }
    script += "echo verified\n";
    let said = guest(PACKAGES, 2, &script).good();
    assert!(said.ends_with("verified\n"), "{said}");
    assert_eq!(said.matches("successful run completed").count(), 6, "{said}");
    assert!(!said.contains("fail:"), "{said}");
}

#[test]
fn pythons_own_tests_pass() {
    let modules = if soaking() { MODULES } else { MODULES_QUICK };
    let script = format!("cd /tmp && python3 -m test --timeout 1200 {modules} 2>&1 | tail -n 40");
    let said = guest(PACKAGES, 1, &script).good();
    assert!(said.contains("Tests result: SUCCESS") || said.contains("\nResult: SUCCESS"), "{said}");
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
        println!("SKIP: CORACLE_SOAK=1 is not set, and Go's compiler is large");
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
