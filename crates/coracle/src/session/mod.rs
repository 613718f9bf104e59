//! One run, from the machine's start to the command's exit code.

mod streams;

use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use guest_protocol::{FromGuest, Run, ToGuest, frame};
use hyperkit::Outcome;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH};

use self::streams::Streams;
use crate::cli::run::Arguments;
use crate::cli::value;
use crate::failure::{Failure, MACHINE};
use crate::machine::{PANIC, Running, Setup};
use crate::terminal::Terminal;

/// Exit code of a command that ran out of time, as timeout(1) gives it.
const TIMED_OUT: u8 = 124;
/// How long the guest may take to power off once its command is done, before it is stopped.
const POWER_OFF_MAX: Duration = Duration::from_secs(5);
/// How often a user must press Ctrl-C before the machine is ended without asking the guest.
const INTERRUPTS_MAX: u32 = 3;

/// What the session waits for.
#[derive(Debug)]
pub enum Event {
    /// PID 1 connected; answers go here.
    Connected(UnixStream),
    /// PID 1 says something.
    Guest(FromGuest),
    /// The user or the host sent a signal.
    Signal(i32),
    /// The machine ended by itself.
    Ended(Outcome),
}

/// Runs the command in the machine; returns the exit code for the user's shell.
///
/// # Errors
/// [`Failure`] when the machine cannot be started or ends before the command does.
pub fn run(setup: Setup, arguments: &Arguments, terminal: Option<Terminal>) -> Result<u8, Failure> {
    let (events, inbox) = channel();
    listen_for_signals(&events)?;
    let request = arguments.initrd.is_none().then(|| request(arguments, &setup));
    let mut running = setup.start()?;
    watch_machine(&running, &events);
    let streams = Streams::accept(running.take_opened(), events, arguments.tty);
    let mut session =
        Session { inbox, request, control: None, started: false, interrupts: 0, terminal, deadline: None };
    session.deadline = arguments.timeout.map(|limit| Instant::now() + limit);
    let ended = session.wait(&running);
    if let Ok(end) = &ended
        && end.command_ended
    {
        streams.drain();
    }
    session.end(&running);
    ended.map(|end| end.code)
}

/// How the wait ended.
struct End {
    code: u8,
    command_ended: bool,
}

struct Session {
    inbox: Receiver<Event>,
    request: Option<Run>,
    control: Option<UnixStream>,
    started: bool,
    interrupts: u32,
    terminal: Option<Terminal>,
    deadline: Option<Instant>,
}

impl Session {
    fn wait(&mut self, running: &Running) -> Result<End, Failure> {
        loop {
            let event = match self.deadline {
                None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(deadline) => self.inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())),
            };
            match event {
                Ok(event) => {
                    if let Some(end) = self.on_event(event, running)? {
                        return Ok(end);
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Ok(End { code: TIMED_OUT, command_ended: false }),
                Err(RecvTimeoutError::Disconnected) => return Err(Failure::machine("the machine is gone")),
            }
        }
    }

    fn on_event(&mut self, event: Event, running: &Running) -> Result<Option<End>, Failure> {
        match event {
            Event::Connected(stream) => self.control = Some(stream),
            Event::Guest(FromGuest::Ready) => {
                if let Some(mut request) = self.request.take() {
                    // As late as can be: the guest sets its clock by it.
                    request.time_ns = now_ns();
                    if let Some(terminal) = &mut self.terminal {
                        terminal.make_raw();
                    }
                    self.tell(&ToGuest::Run(request));
                }
            }
            Event::Guest(FromGuest::Started) => self.started = true,
            Event::Guest(FromGuest::Exited(code)) => {
                return Ok(Some(End { code: code as u8, command_ended: true }));
            }
            Event::Guest(FromGuest::Signaled(signal)) => {
                return Ok(Some(End { code: 128u8.wrapping_add(signal as u8), command_ended: true }));
            }
            Event::Guest(FromGuest::Failed { code, message }) => {
                return Err(Failure { message, code: u8::try_from(code).unwrap_or(MACHINE) });
            }
            Event::Signal(signal) => return Ok(self.on_signal(signal)),
            Event::Ended(outcome) => return self.on_end(&outcome, running).map(Some),
        }
        Ok(None)
    }

    fn on_signal(&mut self, signal: i32) -> Option<End> {
        if signal == SIGWINCH {
            if self.terminal.is_some() {
                self.tell(&ToGuest::WindowSize(Terminal::size()));
            }
            return None;
        }
        self.interrupts += 1;
        if !self.started || self.interrupts >= INTERRUPTS_MAX {
            return Some(End { code: 128u8.wrapping_add(signal as u8), command_ended: false });
        }
        self.tell(&ToGuest::Signal(signal));
        None
    }

    fn on_end(&self, outcome: &Outcome, running: &Running) -> Result<End, Failure> {
        let panicked = running.console().contains(PANIC);
        let orderly = matches!(outcome, Outcome::PoweredOff | Outcome::Reset);
        if self.control.is_none() && self.request.is_none() && orderly && !panicked {
            return Ok(End { code: 0, command_ended: false });
        }
        eprint!("{}", running.console().last_lines());
        let what = if panicked { "the guest's kernel panicked".to_owned() } else { ending(outcome) };
        Err(Failure::machine(&format!(
            "{what} before the command was done; above are its last console lines"
        )))
    }

    fn tell(&mut self, message: &ToGuest) {
        if let Some(control) = &mut self.control {
            // A guest that is gone shows as the machine's end.
            let _ = frame::write(control, message);
        }
    }

    /// Powers the machine off in order, or ends it when that takes too long.
    fn end(&mut self, running: &Running) {
        self.terminal = None;
        if self.control.is_some() {
            self.tell(&ToGuest::PowerOff);
            let deadline = Instant::now() + POWER_OFF_MAX;
            while let Ok(event) = self.inbox.recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                if matches!(event, Event::Ended(_)) {
                    break;
                }
            }
        }
        running.stop();
        let _ = std::io::stdout().flush();
    }
}

fn request(arguments: &Arguments, setup: &Setup) -> Run {
    let terminal = arguments.tty.then(Terminal::size);
    let term = std::env::var_os("TERM").filter(|_| arguments.tty).map(|term| {
        let mut pair = std::ffi::OsString::from("TERM=");
        pair.push(term);
        pair
    });
    let given = arguments.env.iter().filter_map(|variable| value::variable(variable).ok());
    Run {
        argv: arguments.command.iter().map(|argument| argument.clone().into_vec()).collect(),
        env: term.into_iter().chain(given).map(OsStringExt::into_vec).collect(),
        cwd: arguments.workdir.clone().map(OsStringExt::into_vec).unwrap_or_default(),
        stdin: arguments.tty || arguments.interactive || !rustix::termios::isatty(std::io::stdin()),
        terminal,
        hostname: "coracle".to_owned(),
        shares: setup.guest_shares(),
        network: Some(setup.guest_network()),
        time_ns: now_ns(),
    }
}

/// How a machine ended, in words.
fn ending(outcome: &Outcome) -> String {
    match outcome {
        Outcome::PoweredOff => "the guest powered off".to_owned(),
        Outcome::Reset => "the guest restarted".to_owned(),
        Outcome::TripleFault { state, .. } => {
            let rip = state.as_ref().map_or(0, |state| state.rip);
            format!("the guest met a triple fault at {rip:#x}")
        }
        Outcome::Stopped => "the machine was stopped".to_owned(),
        Outcome::Failed { error, .. } => crate::failure::chain(&**error),
        Outcome::Panicked { vcpu } => format!("vCPU {vcpu} failed, which is a defect of ours;"),
    }
}

fn now_ns() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn listen_for_signals(events: &Sender<Event>) -> Result<(), Failure> {
    let wanted = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH];
    let mut signals = signal_hook::iterator::Signals::new(wanted).map_err(|error| Failure::of(&error))?;
    let events = events.clone();
    thread::spawn(move || {
        for signal in &mut signals {
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    });
    Ok(())
}

fn watch_machine(running: &Running, events: &Sender<Event>) {
    let (machine, events) = (running.machine(), events.clone());
    thread::spawn(move || {
        let _ = events.send(Event::Ended(machine.wait()));
    });
}
