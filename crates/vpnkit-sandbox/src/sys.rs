//! System calls that no safe crate has: fork, and leaving the namespaces of the parent.
#![allow(unsafe_code)]

use std::io;

use rustix::process::Pid;
use rustix::thread::UnshareFlags;

/// Makes a second process; returns its number to the first, and `None` to the second.
///
/// # Errors
/// When this process has more than one thread, or the system has no process left.
pub fn fork() -> io::Result<Option<Pid>> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1) {
        return Err(io::Error::other("a process of several threads cannot be doubled"));
    }
    // SAFETY: there is one thread, checked above, so that no lock is held by a thread which the child lacks.
    let pid = unsafe { libc::fork() };
    match pid {
        0 => Ok(None),
        pid if pid > 0 => Ok(Pid::from_raw(pid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Leaves the second process at once: nothing of the first is flushed or dropped.
pub fn leave() -> ! {
    // SAFETY: it does not return, and touches no memory.
    unsafe { libc::_exit(0) }
}

/// Ignores the signals that end a command, which are for the process that the person started.
pub fn ignore_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE] {
        // SAFETY: SIG_IGN is no handler of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Closes every descriptor from 3 on that is not among `kept`.
pub fn close_all_but(mut kept: Vec<i32>) {
    kept.sort_unstable();
    let mut first: u32 = 3;
    for fd in kept.into_iter().filter_map(|fd| u32::try_from(fd).ok()).chain([u32::MAX]) {
        if fd > first {
            // SAFETY: this is the second process right after fork, which uses no descriptor but those kept.
            unsafe { libc::syscall(libc::SYS_close_range, first, fd - 1, 0) };
        }
        first = first.max(fd.saturating_add(1));
    }
}

/// Moves the calling thread, the only one, to new namespaces.
///
/// # Errors
/// As unshare(2).
pub fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: no flag closes or shares descriptors: CLONE_FILES is not among those that callers pass.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Has what happens at a pipe of its own told to another process by SIGKILL, and lets something happen: for tests, which
/// see to it that this is refused.
///
/// # Errors
/// As fcntl(2).
pub fn signal_by_pipe(pid: i32) -> io::Result<()> {
    // Not every C library has the number.
    const F_SETSIG: i32 = 10;
    let (reader, mut writer) = io::pipe()?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&reader);
    let changes = [(libc::F_SETOWN, pid), (F_SETSIG, libc::SIGKILL), (libc::F_SETFL, libc::O_ASYNC)];
    for (command, argument) in changes {
        // SAFETY: these commands take numbers, and the descriptor is open.
        if unsafe { libc::fcntl(fd, command, argument) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    io::Write::write_all(&mut writer, b"now")
}

/// Attaches to another process as a debugger does: for tests, which see to it that this is refused.
///
/// # Errors
/// As ptrace(2).
pub fn trace(pid: i32) -> io::Result<()> {
    // SAFETY: PTRACE_ATTACH uses neither address nor data.
    let result = unsafe { libc::ptrace(libc::PTRACE_ATTACH, pid, 0, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
