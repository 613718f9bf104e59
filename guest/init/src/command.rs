//! Runs the host's command: finds it, gives it its streams, and learns how it ended.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use guest_protocol::{FromGuest, Run, WindowSize};
use rustix::process::{Pid, WaitStatus};
use rustix::pty::{OpenptFlags, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::relay::{OutputRelay, start_input};
use crate::sys;

/// Where commands are looked for when the host says nothing else.
pub const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Sockets to the host.
pub struct Streams {
    /// Input of the command; absent when it is to be empty, and for a terminal.
    pub stdin: Option<OwnedFd>,
    /// Output; both directions of a terminal.
    pub stdout: OwnedFd,
    /// Errors; absent for a terminal.
    pub stderr: Option<OwnedFd>,
}

/// A command that runs.
pub struct Running {
    /// Its process, which leads a group and a session of its own.
    pub pid: Pid,
    /// What moves its output.
    pub relays: Vec<OutputRelay>,
    terminal: Option<OwnedFd>,
}

/// Why a command could not be started.
#[derive(Debug, PartialEq, Eq)]
pub struct StartError {
    /// Exit code by the shell's convention.
    pub code: i32,
    /// One line.
    pub message: String,
}

impl From<StartError> for FromGuest {
    fn from(error: StartError) -> Self {
        Self::Failed { code: error.code, message: error.message }
    }
}

/// Anything that goes wrong in setting up: exit code 125.
pub fn setup_error(message: String) -> StartError {
    StartError { code: 125, message }
}

impl Running {
    /// Follows the size of the host's terminal.
    pub fn resize(&self, size: WindowSize) {
        if let Some(terminal) = &self.terminal {
            // The size is a courtesy; the command runs on without it.
            let _ = tcsetwinsize(terminal, window(size));
        }
    }
}

fn window(size: WindowSize) -> Winsize {
    Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Starts the command of `run`.
///
/// # Errors
/// 127 when it is not found, 126 when it cannot be executed, 125 for everything else.
pub fn start(run: &Run, streams: Streams) -> Result<Running, StartError> {
    let env = environment(run);
    let name = run
        .argv
        .first()
        .filter(|name| !name.is_empty())
        .ok_or_else(|| setup_error("no command was given".to_owned()))?;
    let cwd = if run.cwd.is_empty() { Path::new("/root") } else { Path::new(OsStr::from_bytes(&run.cwd)) };
    std::fs::create_dir_all(cwd).map_err(|error| {
        setup_error(format!("cannot use the working directory {}: {error}", cwd.display()))
    })?;
    let path = env.iter().rev().find(|(key, _)| key == "PATH").map_or(OsStr::new(""), |(_, value)| value);
    let program = find_program(OsStr::from_bytes(name), path, cwd)?;
    let mut command = Command::new(&program);
    command.arg0(OsStr::from_bytes(name)).args(run.argv[1..].iter().map(|word| OsStr::from_bytes(word)));
    command.env_clear().envs(env).current_dir(cwd);
    match run.terminal {
        Some(size) => start_on_terminal(&mut command, size, streams),
        None => start_on_pipes(&mut command, streams),
    }
    .map_err(|error| start_error(OsStr::from_bytes(name), &error))
}

fn start_error(name: &OsStr, error: &io::Error) -> StartError {
    let code = match error.kind() {
        io::ErrorKind::NotFound => 127,
        _ => 126,
    };
    StartError { code, message: format!("{}: {error}", name.display()) }
}

fn start_on_pipes(command: &mut Command, streams: Streams) -> io::Result<Running> {
    command.stdin(if streams.stdin.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    sys::begin_session(command, false);
    let mut child = command.spawn()?;
    if let (Some(from), Some(to)) = (streams.stdin, child.stdin.take()) {
        start_input(from, to.into());
    }
    let mut relays = Vec::new();
    if let Some(output) = child.stdout.take() {
        relays.push(OutputRelay::start(output.into(), streams.stdout)?);
    }
    if let (Some(errors), Some(to)) = (child.stderr.take(), streams.stderr) {
        relays.push(OutputRelay::start(errors.into(), to)?);
    }
    Ok(Running { pid: Pid::from_child(&child), relays, terminal: None })
}

fn start_on_terminal(command: &mut Command, size: WindowSize, streams: Streams) -> io::Result<Running> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let terminal = openpt(flags)?;
    unlockpt(&terminal)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&terminal, flags)?;
    tcsetwinsize(&terminal, window(size))?;
    command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
    sys::begin_session(command, true);
    let child = command.spawn()?;
    // Our copies of the slave would keep the terminal from ever ending.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    start_input(streams.stdout.try_clone()?, terminal.try_clone()?);
    let relays = vec![OutputRelay::start(terminal.try_clone()?, streams.stdout)?];
    Ok(Running { pid: Pid::from_child(&child), relays, terminal: Some(terminal) })
}

/// The guest's own environment, then the host's; of several values the last counts.
fn environment(run: &Run) -> Vec<(OsString, OsString)> {
    let mut env: Vec<(OsString, OsString)> =
        [("PATH", PATH), ("HOME", "/root"), ("USER", "root"), ("LOGNAME", "root")]
            .map(|(key, value)| (key.into(), value.into()))
            .into();
    if run.terminal.is_some() {
        env.push(("TERM".into(), "xterm".into()));
    }
    for entry in &run.env {
        let Some(at) = entry.iter().position(|&byte| byte == b'=').filter(|&at| at > 0) else { continue };
        let (key, value) = (&entry[..at], &entry[at + 1..]);
        env.push((OsString::from_vec(key.to_vec()), OsString::from_vec(value.to_vec())));
    }
    env
}

/// Finds a program as a shell does. A name with a slash is taken as it is, from the working directory.
fn find_program(name: &OsStr, path: &OsStr, cwd: &Path) -> Result<PathBuf, StartError> {
    if name.as_bytes().contains(&b'/') {
        return Ok(cwd.join(name));
    }
    let mut is_there = false;
    for folder in path.as_bytes().split(|&byte| byte == b':') {
        let candidate = cwd.join(OsStr::from_bytes(folder)).join(name);
        let Ok(metadata) = std::fs::metadata(&candidate) else { continue };
        if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
            return Ok(candidate);
        }
        is_there |= metadata.is_file();
    }
    if is_there {
        return Err(StartError { code: 126, message: format!("{}: permission denied", name.display()) });
    }
    Err(StartError { code: 127, message: format!("{}: command not found in the guest", name.display()) })
}

/// How a process ended, in the protocol's words.
pub fn ended(status: WaitStatus) -> FromGuest {
    match status.terminating_signal() {
        Some(signal) => FromGuest::Signaled(signal),
        None => FromGuest::Exited(status.exit_status().unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::drain;
    use rustix::process::WaitOptions;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    fn run(argv: &[&str]) -> Run {
        Run {
            argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(),
            env: vec![b"PATH=/usr/bin:/bin".to_vec(), b"A=b".to_vec()],
            cwd: b"/tmp".to_vec(),
            stdin: true,
            terminal: None,
            hostname: String::new(),
            shares: Vec::new(),
            network: None,
            time_ns: 0,
        }
    }

    fn wait_for(pid: Pid) -> io::Result<FromGuest> {
        loop {
            match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => return Ok(ended(status)),
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    struct Host {
        stdin: UnixStream,
        stdout: UnixStream,
        stderr: UnixStream,
    }

    fn streams() -> (Host, Streams) {
        let [(stdin, a), (stdout, b), (stderr, c)] = [(); 3].map(|()| UnixStream::pair().unwrap());
        (
            Host { stdin, stdout, stderr },
            Streams { stdin: Some(a.into()), stdout: b.into(), stderr: Some(c.into()) },
        )
    }

    fn finish(running: &Running) -> FromGuest {
        let end = wait_for(running.pid).unwrap();
        drain(&running.relays);
        end
    }

    fn text(stream: &mut UnixStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn streams_are_separate_binary_safe_and_whole() {
        let (mut host, guest) = streams();
        let running = start(&run(&["sh", "-c", "cat; echo $A >&2; exit 7"]), guest).unwrap();
        let payload: Vec<u8> = (0..300_000_u32).map(|n| (n * 7) as u8).collect();
        let sent = payload.clone();
        let mut stdin = host.stdin.try_clone().unwrap();
        std::thread::spawn(move || {
            stdin.write_all(&sent).unwrap();
            stdin.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        host.stdout.read_to_end(&mut received).unwrap();
        assert!(received == payload);
        assert_eq!(text(&mut host.stderr), "b\n");
        assert_eq!(finish(&running), FromGuest::Exited(7));
    }

    #[test]
    fn a_slow_host_loses_nothing() {
        let (mut host, guest) = streams();
        let running = start(&run(&["head", "-c", "3000000", "/dev/zero"]), guest).unwrap();
        let reader = std::thread::spawn(move || {
            let mut sum = 0;
            let mut buffer = vec![0; 1 << 20];
            loop {
                std::thread::sleep(Duration::from_millis(30));
                match host.stdout.read(&mut buffer).unwrap() {
                    0 => return sum,
                    n => sum += n,
                }
            }
        });
        assert_eq!(finish(&running), FromGuest::Exited(0));
        assert_eq!(reader.join().unwrap(), 3_000_000);
    }

    #[test]
    fn a_process_left_behind_does_not_hold_up_the_end() {
        let (mut host, guest) = streams();
        let begun = Instant::now();
        let running = start(&run(&["sh", "-c", "sleep 5 & echo started"]), guest).unwrap();
        assert_eq!(finish(&running), FromGuest::Exited(0));
        assert_eq!(text(&mut host.stdout), "started\n");
        assert!(begun.elapsed() < Duration::from_secs(4));
        sys::kill_group(running.pid.as_raw_nonzero().get(), libc::SIGKILL).unwrap();
    }

    #[test]
    fn a_signal_reaches_the_group_and_is_reported() {
        let (_host, guest) = streams();
        let running = start(&run(&["sh", "-c", "sleep 30; true"]), guest).unwrap();
        sys::kill_group(running.pid.as_raw_nonzero().get(), libc::SIGTERM).unwrap();
        assert_eq!(finish(&running), FromGuest::Signaled(libc::SIGTERM));
    }

    #[test]
    fn a_terminal_has_a_size_and_is_the_controlling_one() {
        let (mut host, guest) = streams();
        let mut run = run(&["sh", "-c", "stty size; test -t 2 && echo yes > /dev/tty; read x; echo got $x"]);
        run.terminal = Some(WindowSize { rows: 33, columns: 99 });
        let running = start(&run, Streams { stdin: None, stderr: None, ..guest }).unwrap();
        host.stdout.write_all(b"hello\r").unwrap();
        let mut received = Vec::new();
        File::from(OwnedFd::from(host.stdout)).read_to_end(&mut received).unwrap();
        assert_eq!(finish(&running), FromGuest::Exited(0));
        let received = String::from_utf8(received).unwrap();
        for line in ["33 99\r\n", "yes\r\n", "got hello\r\n"] {
            assert!(received.contains(line), "{received:?}");
        }
    }

    #[test]
    fn control_c_on_the_terminal_is_a_signal() {
        let (mut host, guest) = streams();
        let mut run = run(&["sh", "-c", "echo ready; exec sleep 30"]);
        run.terminal = Some(WindowSize { rows: 1, columns: 1 });
        let running = start(&run, Streams { stdin: None, stderr: None, ..guest }).unwrap();
        let mut line = [0; 7];
        host.stdout.read_exact(&mut line).unwrap();
        host.stdout.write_all(&[3]).unwrap();
        assert_eq!(finish(&running), FromGuest::Signaled(libc::SIGINT));
    }

    #[test]
    fn what_cannot_be_started_has_the_shells_codes() {
        for (name, code) in
            [("no-such-command", 127), ("/no/such/file", 127), ("/tmp", 126), ("/etc/passwd", 126)]
        {
            let (_host, guest) = streams();
            let error = start(&run(&[name]), guest).err().unwrap();
            assert_eq!(error.code, code, "{}", error.message);
            assert!(error.message.starts_with(name), "{}", error.message);
        }
        let (_host, guest) = streams();
        assert_eq!(start(&run(&[]), guest).err().unwrap().code, 125);
    }

    #[test]
    fn the_hosts_environment_wins() {
        let (mut host, guest) = streams();
        let mut run = run(&["sh", "-c", "echo $HOME $A"]);
        run.env.push(b"HOME=/elsewhere".to_vec());
        run.env.push(b"nonsense".to_vec());
        run.stdin = false;
        let running = start(&run, Streams { stdin: None, ..guest }).unwrap();
        assert_eq!(text(&mut host.stdout), "/elsewhere b\n");
        assert_eq!(finish(&running), FromGuest::Exited(0));
    }
}
