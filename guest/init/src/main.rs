//! PID 1 of the guest: sets the machine up as the host says, runs its command, and powers off.
//!
//! Talks to the host over vsock (`guest-protocol`). Needs no shell and no file of the image but kernel modules. It
//! never hangs: whatever goes wrong is said on the console, and the machine powers off.
//!
//! `coracle.init=poweroff` on the kernel's command line powers off at once (for measuring boots);
//! `coracle.init=console` gives a shell on the console instead of talking to the host (for finding faults). With
//! `coracle.script=PATH` that shell runs a script, which may be a disk.

mod command;
mod modules;
mod mounts;
mod network;
mod relay;
mod sys;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use guest_protocol::{CONTROL_PORT, FromGuest, Run, STDERR_PORT, STDIN_PORT, STDOUT_PORT, ToGuest, frame};
use rustix::process::{Pid, WaitOptions};

use command::{Running, StartError, Streams, setup_error};
use modules::Modules;

/// How long the vsock device may take to appear, and the host to listen.
const HOST_WAIT: Duration = Duration::from_secs(5);
/// How long processes may take to end when asked to, before they are made to.
const TERMINATION_GRACE: Duration = Duration::from_millis(500);

/// What the main thread waits for.
enum Event {
    FromHost(ToGuest),
    HostGone,
    Ended(FromGuest),
}

fn main() {
    std::panic::set_hook(Box::new(|panic| {
        say(&format!("PID 1 panicked: {panic}"));
        power_off();
    }));
    if std::process::id() != 1 {
        say("it runs as PID 1 of a guest only");
        std::process::exit(1);
    }
    if let Err(message) = live() {
        say(&message);
    }
    power_off();
}

/// Writes a line to the console.
fn say(message: &str) {
    eprintln!("coracle-init: {message}");
}

/// Ends the machine; does not return if the kernel does its part.
fn power_off() -> ! {
    rustix::fs::sync();
    let error = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    say(&format!("cannot power off: {error:?}"));
    // The kernel panics when PID 1 ends, and then resets the machine (`panic=-1`).
    std::process::abort()
}

fn live() -> Result<(), String> {
    mounts::mount_proc().map_err(|error| format!("cannot mount /proc: {error}"))?;
    let command_line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let mode = command_line.split_whitespace().find_map(|word| word.strip_prefix("coracle.init="));
    if mode == Some("poweroff") {
        return Ok(());
    }
    let mut modules = Modules::open();
    modules.load("boot")?;
    mounts::mount_kernel_file_systems()?;
    network::up_loopback().map_err(|error| format!("cannot bring up lo: {error}"))?;
    if mounts::has_root_disk() {
        modules.load("root")?;
    } else if mounts::has_disk() {
        modules.load("disk")?;
    }
    if mode == Some("console") {
        let script = command_line.split_whitespace().find_map(|word| word.strip_prefix("coracle.script="));
        return run_shell(&mut modules, script);
    }
    let control = connect_control()?;
    let (sender, events) = channel();
    let writer = Arc::new(Mutex::new(
        control.try_clone().map_err(|error| format!("cannot duplicate the control stream: {error}"))?,
    ));
    send(&writer, &FromGuest::Ready);
    let to_main = sender.clone();
    std::thread::spawn(move || read_control(control, &to_main));
    let Some(run) = wait_for_run(&events) else { return Ok(()) };
    let mut mounted = Vec::new();
    match set_up_and_start(&run, &mut modules, &mut mounted) {
        Ok(running) => {
            send(&writer, &FromGuest::Started);
            supervise(&running, sender, &events, &writer, !mounted.is_empty());
        }
        Err(error) => {
            send(&writer, &error.into());
            wait_for_power_off(&events);
        }
    }
    terminate_all();
    mounts::unmount_all(&mounted);
    Ok(())
}

/// Runs a shell on the console, or a script in it, with all modules loaded and the final root, and returns when it ends.
fn run_shell(modules: &mut Modules, script: Option<&str>) -> Result<(), String> {
    if mounts::has_root_disk() {
        mounts::switch_to_root_disk()?;
    }
    let _some_devices_may_lack = (modules.load("net"), modules.load("share"));
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(script).env("HOME", "/root").env("PATH", command::PATH);
    let status = shell.status();
    let status = status.map_err(|error| format!("cannot run /bin/sh: {error}"))?;
    say(&format!("the shell ended: {status}"));
    mounts::unmount_all(&[]);
    Ok(())
}

/// Connects to the host, waiting a little for the device.
fn connect_control() -> Result<File, String> {
    let begun = Instant::now();
    loop {
        match sys::connect_host(CONTROL_PORT) {
            Ok(socket) => return Ok(File::from(socket)),
            Err(error) if begun.elapsed() > HOST_WAIT => {
                return Err(format!("cannot reach the host over vsock: {error} (is there a vsock device?)"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Sends a message; if the host is gone, [`read_control`] finds out too and ends everything.
fn send(writer: &Mutex<File>, message: &FromGuest) {
    let mut stream = writer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Err(error) = frame::write(&mut *stream, message) {
        say(&format!("cannot tell the host {message:?}: {error}"));
    }
}

fn read_control(mut control: File, events: &Sender<Event>) {
    loop {
        let event = match frame::read(&mut control) {
            Ok(Some(message)) => Event::FromHost(message),
            Ok(None) => Event::HostGone,
            Err(error) => {
                say(&format!("the control stream is broken: {error}"));
                Event::HostGone
            }
        };
        let is_last = matches!(event, Event::HostGone);
        if events.send(event).is_err() || is_last {
            return;
        }
    }
}

/// The host's command; `None` when it wants none.
fn wait_for_run(events: &Receiver<Event>) -> Option<Run> {
    loop {
        match events.recv().ok()? {
            Event::FromHost(ToGuest::Run(run)) => return Some(run),
            Event::FromHost(ToGuest::PowerOff) | Event::HostGone => return None,
            Event::FromHost(_) | Event::Ended(_) => {}
        }
    }
}

fn wait_for_power_off(events: &Receiver<Event>) {
    while !matches!(events.recv(), Ok(Event::FromHost(ToGuest::PowerOff) | Event::HostGone) | Err(_)) {}
}

fn set_up_and_start(
    run: &Run,
    modules: &mut Modules,
    mounted: &mut Vec<PathBuf>,
) -> Result<Running, StartError> {
    set_clock(run.time_ns);
    if mounts::has_root_disk() {
        mounts::switch_to_root_disk().map_err(setup_error)?;
    }
    if !run.shares.is_empty() {
        modules.load("share").map_err(setup_error)?;
        *mounted = mounts::mount_shares(&run.shares).map_err(setup_error)?;
    }
    if let Some(network) = &run.network {
        modules.load("net").map_err(setup_error)?;
        network::configure(network).map_err(setup_error)?;
    }
    network::set_names(&run.hostname, run.network.as_ref()).map_err(setup_error)?;
    command::start(run, connect_streams(run)?)
}

fn set_clock(time_ns: u64) {
    let time = rustix::time::Timespec {
        tv_sec: (time_ns / 1_000_000_000).cast_signed(),
        tv_nsec: (time_ns % 1_000_000_000).cast_signed(),
    };
    if let Err(error) = rustix::time::clock_settime(rustix::time::ClockId::Realtime, time) {
        say(&format!("cannot set the clock: {error}"));
    }
}

fn connect_streams(run: &Run) -> Result<Streams, StartError> {
    let connect = |port: u32| -> Result<OwnedFd, StartError> {
        sys::connect_host(port)
            .map_err(|error| setup_error(format!("cannot connect to port {port} of the host: {error}")))
    };
    if run.terminal.is_some() {
        return Ok(Streams { stdin: None, stdout: connect(STDOUT_PORT)?, stderr: None });
    }
    let stdin = if run.stdin { Some(connect(STDIN_PORT)?) } else { None };
    Ok(Streams { stdin, stdout: connect(STDOUT_PORT)?, stderr: Some(connect(STDERR_PORT)?) })
}

/// Serves the host until it wants the machine to end. What was written to shares is with the host before it hears that
/// the command ended.
fn supervise(
    running: &Running,
    to_main: Sender<Event>,
    events: &Receiver<Event>,
    writer: &Mutex<File>,
    has_shares: bool,
) {
    let pid = running.pid;
    std::thread::spawn(move || reap(pid, &to_main));
    while let Ok(event) = events.recv() {
        match event {
            Event::FromHost(ToGuest::Signal(signal)) => {
                // A command that has just ended needs no signal.
                let _ = sys::kill_group(pid.as_raw_nonzero().get(), signal);
            }
            Event::FromHost(ToGuest::WindowSize(size)) => running.resize(size),
            Event::FromHost(ToGuest::PowerOff) | Event::HostGone => return,
            Event::FromHost(ToGuest::Run(_)) => say("a second command was refused"),
            Event::Ended(end) => {
                relay::drain(&running.relays);
                if has_shares {
                    rustix::fs::sync();
                }
                send(writer, &end);
            }
        }
    }
}

/// Waits for the command, then for all the orphans that PID 1 inherits, until there are none.
fn reap(pid: Pid, events: &Sender<Event>) {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((child, status))) if child == pid => {
                let _ = events.send(Event::Ended(command::ended(status)));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// Asks every process to end, then makes it. Returns at once when there is none.
fn terminate_all() {
    let begun = Instant::now();
    let mut signal = libc::SIGTERM;
    while has_children() && begun.elapsed() < 2 * TERMINATION_GRACE {
        // It reaches kernel threads too, which take no notice.
        let _ = sys::kill_group(0, signal);
        if begun.elapsed() > TERMINATION_GRACE {
            signal = libc::SIGKILL;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether any process is left: orphans become children of PID 1, so without children there is none.
fn has_children() -> bool {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    !matches!(waitid(WaitId::All, options), Err(rustix::io::Errno::CHILD))
}
