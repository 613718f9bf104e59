//! Guest time on a processor in software, on a host that has other things to do: sleep is sleep, and the guest's clocks go
//! as the host's does.
//!
//! What is measured on a busy host comes late, so nothing here asks for anything within a time. A span that the guest
//! measures inside one of the host's cannot be longer than it, and a span around one of the host's cannot be shorter:
//! that holds however late anybody is, and a clock that goes wrong breaks one of the two.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::processor::{PACKAGES, in_guest};
use crate::{Started, sh};

/// What a clock may be off by: its own resolution, twice, and a hundredth for its rate.
const RESOLUTION_S: f64 = 0.02;
const RATE: f64 = 0.01;

/// Threads that keep the host's cores busy for as long as this lives, two for each. To be started with a machine that has
/// its turn, lest other tests' machines have them for company.
struct Load(Arc<AtomicBool>);

impl Load {
    fn start() -> Load {
        let over = Arc::new(AtomicBool::new(false));
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        for _ in 0..2 * cores {
            let over = Arc::clone(&over);
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Load(over)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A guest on a busy host, whose script says lines and waits for lines.
struct Talk {
    started: Started,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    _load: Load,
}

impl Talk {
    fn start(flags: &[&str], script: &str) -> Talk {
        let mut run = sh(flags, script);
        run.command().stdin(Stdio::piped());
        let load = Load::start();
        let mut started = run.start();
        let to = started.child.stdin.take().unwrap();
        let from = BufReader::new(started.child.stdout.take().unwrap());
        Talk { started, to, from, _load: load }
    }

    /// The next line, in words.
    fn hear(&mut self) -> Vec<String> {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        line.split_whitespace().map(str::to_owned).collect()
    }

    fn say(&mut self) {
        self.to.write_all(b"go\n").unwrap();
    }

    /// The rest of what it says; asserts that it ends well.
    fn rest(mut self) -> String {
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.from, &mut rest).unwrap();
        assert!(self.started.child.wait().unwrap().success(), "{rest}");
        rest
    }
}

fn number(words: &[String], at: usize) -> f64 {
    words.get(at).and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no number {at} in {words:?}"))
}

/// Asserts that a span measured inside another is not the longer one.
fn assert_within(what: &str, inner: f64, outer: f64) {
    assert!(inner <= outer * (1.0 + RATE) + RESOLUTION_S, "{what}: {inner} s inside {outer} s");
}

/// Busy loops, one more than there are processors; then what the host asks for. `up` is the time since boot.
const SCRIPT: &str = r#"
busy=
n=$(grep -c ^processor /proc/cpuinfo)
while [ $n -ge 0 ]; do (while :; do :; done) & busy="$busy $!"; n=$((n - 1)); done
up() { cut -d ' ' -f 1 /proc/uptime; }
before=$(up)
echo open; read go; echo close $before $(up)
read go; from=$(up); sleep 2; echo slept $from $(up) $(date +%s)
cat /sys/devices/system/clocksource/clocksource0/current_clocksource
kill $busy
"#;

/// The guest's clocks beside the host's.
fn clocks_agree(cpus: &str) {
    let mut talk = Talk::start(&["--engine", "soft", "--cpus", cpus], SCRIPT);
    assert_eq!(talk.hear(), ["open"]);
    let opened = Instant::now();
    std::thread::sleep(Duration::from_secs(4));
    let host = opened.elapsed().as_secs_f64();
    talk.say();
    let close = talk.hear();
    assert_within("a span of the host's in one of the guest's", host, number(&close, 2) - number(&close, 1));

    let (begun, begun_unix) = (Instant::now(), unix_s());
    talk.say();
    let slept = talk.hear();
    let (host, ended_unix) = (begun.elapsed().as_secs_f64(), unix_s());
    let guest = number(&slept, 2) - number(&slept, 1);
    assert_within("sleep 2 by the host's clock", 2.0, host);
    assert_within("sleep 2 by the guest's clock", 2.0, guest);
    assert!(guest < 20.0, "sleep 2 took {guest} s, which is more than a host that is only busy makes of it");
    assert_within("a span of the guest's in one of the host's", guest, host);
    let date = number(&slept, 3);
    assert!((begun_unix - 1.0..=ended_unix + 1.0).contains(&date), "{begun_unix} {date} {ended_unix}");
    let source = talk.rest();
    assert!(
        ["kvm-clock", "tsc"].contains(&source.trim()),
        "the kernel trusts neither of its clocks: {source}"
    );
}

fn unix_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[test]
fn the_clocks_of_a_busy_guest_go_as_the_hosts_on_a_busy_host() {
    clocks_agree("1");
}

#[test]
fn and_so_they_do_with_two_processors() {
    clocks_agree("2");
}

/// Makes the kernel's own watchdogs as strict as they can be with a host that takes its time, keeps all processors busy
/// for longer than they wait, and shows what the kernel said.
const WATCHED: &str = r#"
busy=
echo 5 > /proc/sys/kernel/watchdog_thresh || exit 1
echo 10 > /sys/module/rcupdate/parameters/rcu_cpu_stall_timeout || exit 1
n=$(grep -c ^processor /proc/cpuinfo)
while [ $n -ge 0 ]; do (while :; do :; done) & busy="$busy $!"; n=$((n - 1)); done
sleep 14
kill $busy
echo 'a line that must be found' > /dev/kmsg
dmesg
"#;

#[test]
fn the_kernel_has_no_complaint_of_time_on_a_busy_host() {
    for cpus in ["1", "2"] {
        let run = sh(&["--engine", "soft", "--cpus", cpus], WATCHED);
        let _load = Load::start();
        let said = run.done().good();
        assert!(said.contains("a line that must be found"), "{said}");
        for complaint in ["unstable", "soft lockup", "hard LOCKUP", "stall"] {
            let found: Vec<&str> = said.lines().filter(|line| line.contains(complaint)).collect();
            assert!(found.is_empty(), "{cpus} vCPUs: {found:?}");
        }
    }
}

/// Reads clocks while going from one processor to the other, then has two processes on one each throw readings at one another.
const TWO_PROCESSORS: &str = r#"
import os, time
clocks = {name: getattr(time, 'CLOCK_' + name) for name in ('MONOTONIC', 'MONOTONIC_RAW', 'BOOTTIME', 'REALTIME')}
assert os.sched_getaffinity(0) == {0, 1}
last = dict.fromkeys(clocks, 0)
for n in range(1000):
    os.sched_setaffinity(0, {n % 2})
    for name, clock in clocks.items():
        now = time.clock_gettime_ns(clock)
        assert now >= last[name], (name, n % 2, last[name] - now)
        last[name] = now
there, here = os.pipe(), os.pipe()
child = os.fork()
receive, send = (there[0], here[1]) if child == 0 else (here[0], there[1])
os.sched_setaffinity(0, {1 if child == 0 else 0})
for n in range(1000):
    if child != 0:
        os.write(send, time.monotonic_ns().to_bytes(8, 'little'))
    sent = int.from_bytes(os.read(receive, 8), 'little')
    now = time.monotonic_ns()
    assert now >= sent, sent - now
    if child == 0:
        os.write(send, time.monotonic_ns().to_bytes(8, 'little'))
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print('agreed')
"#;

#[test]
fn clocks_never_go_back_between_two_processors() {
    let script = format!("python3 -c \"{TWO_PROCESSORS}\"");
    let run = in_guest(PACKAGES, 2, &script);
    let _load = Load::start();
    assert_eq!(run.done().good(), "agreed\n");
}
