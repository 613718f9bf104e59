//! What is logged, by whom, and from which level on: levels change at run time, by files under `debug/src`.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

/// How much matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed.
    Error = 0,
    /// Something may fail.
    Warning = 1,
    /// What happened.
    Info = 2,
    /// Every detail.
    Debug = 3,
}

impl Level {
    /// Reads a level's name.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Error, Self::Warning, Self::Info, Self::Debug].into_iter().find(|level| level.name() == text)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }

    fn of(number: u8) -> Self {
        match number {
            0 => Self::Error,
            1 => Self::Warning,
            2 => Self::Info,
            _ => Self::Debug,
        }
    }
}

/// Who logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Connections, mounts, start and end.
    Server = 0,
    /// Transactions and merges.
    Store = 1,
    /// Fetches and pushes.
    Remote = 2,
}

impl Source {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Server, Self::Store, Self::Remote];

    /// Its name, which is a directory's under `debug/src`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Store => "store",
            Self::Remote => "remote",
        }
    }

    /// What it logs.
    pub fn doc(self) -> &'static str {
        match self {
            Self::Server => "connections, mounts, start and end",
            Self::Store => "transactions, commits and merges",
            Self::Remote => "fetches and pushes",
        }
    }
}

type Sink = Box<dyn FnMut(&str) + Send>;

/// Where lines go, and which.
pub struct Logs {
    levels: [AtomicU8; 3],
    sink: Mutex<Sink>,
}

impl Logs {
    /// Lines of `level` and above go to `sink`, without line ends.
    pub fn new(level: Level, sink: impl FnMut(&str) + Send + 'static) -> Self {
        let levels = [const { AtomicU8::new(0) }; 3];
        levels.iter().for_each(|own| own.store(level as u8, Ordering::Relaxed));
        Self { levels, sink: Mutex::new(Box::new(sink)) }
    }

    /// Nothing goes anywhere.
    pub fn none() -> Self {
        Self::new(Level::Error, |_| {})
    }

    /// From which level on this source is heard.
    pub fn level(&self, source: Source) -> Level {
        Level::of(self.levels[source as usize].load(Ordering::Relaxed))
    }

    /// Changes that.
    pub fn set_level(&self, source: Source, level: Level) {
        self.levels[source as usize].store(level as u8, Ordering::Relaxed);
    }

    /// Logs a line, which is made only if it is heard.
    pub fn log(&self, source: Source, level: Level, line: impl FnOnce() -> String) {
        if level <= self.level(source) {
            let line = format!("{} [{}] {}", level.name(), source.name(), line());
            (self.sink.lock().unwrap_or_else(PoisonError::into_inner))(&line);
        }
    }
}

impl std::fmt::Debug for Logs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logs").field("levels", &self.levels).finish_non_exhaustive()
    }
}
