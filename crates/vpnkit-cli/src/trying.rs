//! For tests of the sandbox, in debug builds alone: the confined process tries what it must not be able to do, and says
//! what came of it.

use std::io;
use std::net::TcpStream;

/// Makes the attempts, on a thread like any other of the process, and reports each on stderr.
pub fn all(attempts: &[String]) {
    for attempt in attempts {
        let attempt = attempt.clone();
        let thread = std::thread::spawn(move || {
            let outcome = match attempt_one(&attempt) {
                Ok(()) => "done".to_owned(),
                Err(error) => format!("refused: {error}"),
            };
            eprintln!("vpnkit: tried {attempt}: {outcome}");
        });
        let _ = thread.join();
    }
}

fn attempt_one(attempt: &str) -> io::Result<()> {
    use rustix::process::{Pid, Signal};
    use rustix::thread::LinkNameSpaceType;
    let (what, argument) = attempt.split_once('=').unwrap_or((attempt, ""));
    match what {
        "read" => std::fs::read(argument).map(drop),
        "create" => std::fs::write(argument, "mine"),
        "list" => std::fs::read_dir(argument).map(drop),
        "remove" => std::fs::remove_file(argument),
        "spawn" => std::process::Command::new(argument).status().map(drop),
        // It returns only if it failed.
        "exec" => Err(std::os::unix::process::CommandExt::exec(&mut std::process::Command::new(argument))),
        "unix" => std::os::unix::net::UnixStream::connect(argument).map(drop),
        "tcp" => TcpStream::connect(argument).map(drop),
        "signal" => {
            let pid = argument.parse().ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
            Ok(rustix::process::kill_process(pid, Signal::TERM)?)
        }
        "own" => vpnkit_sandbox::signal_by_pipe(argument.parse().map_err(io::Error::other)?),
        "limits" => {
            use rustix::process::{Resource, Rlimit, setrlimit};
            Ok(setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?)
        }
        "setns" => {
            // Any descriptor: the call itself is what is tried.
            Ok(rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(&io::stderr()),
                Some(LinkNameSpaceType::Network),
            )?)
        }
        "userns" => {
            let one = rustix::thread::UnshareFlags::NEWUSER;
            Ok(vpnkit_sandbox::unshare(one)?)
        }
        "trace" => vpnkit_sandbox::trace(argument.parse().map_err(io::Error::other)?),
        "chroot" => Ok(rustix::process::chroot("/")?),
        _ => Err(io::Error::other("this is not something to try")),
    }
}
