//! `serve --auto-push`: what changes is pushed, also what changed while no server ran.
//!
//! The file `datakit/auto-push` in the repository has the number of the next update that is to be pushed, and where to.
//! Losing it is harmless: what is pushed once more is there already.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use datakit::{Level, Service, Source};
use datakit_git::remote::{AutoPush, Pace, Remote};
use datakit_store::{Next, Seq, Start, Store, Updates};

use super::Failure;

/// How often we look whether we are to end.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How often what is pushed is written down while commits go on.
const NOTE_EVERY: Duration = Duration::from_secs(1);

/// Pushes what changes until it is dropped, which waits until what changed before is pushed, too, unless that fails.
pub struct AutoPushing {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl AutoPushing {
    /// Goes on where the last server that pushed to `url` ended; the first begins with what changes from now on.
    ///
    /// # Errors
    /// What is wrong with the URL.
    pub fn start(service: &Service, url: &str) -> Result<Self, Failure> {
        let store = service.store().clone();
        let directory = store.git_dir().ok_or_else(|| Failure::usage("--auto-push takes --git"))?;
        let remote = Remote::new(directory, "auto-push", url)
            .map_err(|error| Failure::usage(format!("--auto-push: {error}")))?;
        let note = Note { path: directory.join("datakit/auto-push"), url: remote.url(), noted: None };
        let logged = service.clone();
        let log = move |line: &str| logged.logs().log(Source::Remote, Level::Warning, || line.to_owned());
        let failed = |error| Failure::other(format!("no thread for --auto-push: {error}"));
        // Commits may be acknowledged before git, and so whoever pushes, sees them.
        let settled = store.clone();
        let settle = move || settled.sync().map_err(|error| error.to_string());
        let push = AutoPush::start(remote, Pace::default(), settle, log).map_err(failed)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stops = Arc::clone(&stop);
        let follow = move || follow(&store, push, note, &stops);
        let thread = thread::Builder::new().name("auto-push".into()).spawn(follow).map_err(failed)?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for AutoPushing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // It panicked, and said so itself.
            let _ = thread.join();
        }
    }
}

fn follow(store: &Store, push: AutoPush, mut note: Note, stop: &AtomicBool) {
    let resumed = note.read().and_then(|seq| store.updates(None, Start::From(seq)).ok());
    let Some(mut updates) = resumed.or_else(|| begin(store, &push, note.was_there())) else { return };
    if !note.was_there() {
        note.write(updates.position());
    }
    let mut noted = Instant::now();
    loop {
        // Asked first, so that nothing that happened before is left out.
        let stops = stop.load(Ordering::Acquire);
        match updates.next(Some(if stops { Duration::ZERO } else { LOOK_EVERY })) {
            Ok(Next::Value(update)) => push.changed(&update.branch.to_string()),
            Ok(Next::TimedOut) if !stops => {}
            Ok(Next::TimedOut | Next::Cancelled) => break,
            Err(_) => match begin(store, &push, true) {
                Some(anew) => updates = anew,
                None => return,
            },
        }
        if noted.elapsed() >= NOTE_EVERY {
            noted = Instant::now();
            let position = updates.position();
            if push.status().waiting.is_empty() {
                note.write(position);
            }
        }
    }
    let position = updates.position();
    if push.finish().waiting.is_empty() {
        note.write(position);
    }
}

/// Updates from now on. When some were missed, every branch may have changed.
fn begin(store: &Store, push: &AutoPush, missed: bool) -> Option<Updates> {
    let updates = store.updates(None, Start::Now).ok()?;
    if missed {
        store.branches().unwrap_or_default().iter().for_each(|(branch, _)| push.changed(&branch.to_string()));
    }
    Some(updates)
}

/// What the next server is to know.
struct Note {
    path: PathBuf,
    /// Without a password.
    url: String,
    noted: Option<Seq>,
}

impl Note {
    fn text(&self) -> Option<String> {
        let text = fs::read_to_string(&self.path).ok()?;
        let (seq, url) = text.trim_end().split_once(' ')?;
        (url == self.url).then(|| seq.to_owned())
    }

    /// Whether somebody pushed to this URL before.
    fn was_there(&self) -> bool {
        self.text().is_some()
    }

    fn read(&self) -> Option<Seq> {
        self.text()?.parse().ok().map(Seq)
    }

    /// A note that cannot be written costs pushing again what is there already.
    fn write(&mut self, position: Seq) {
        if self.noted == Some(position) {
            return;
        }
        let unfinished: &Path = &self.path.with_extension("new");
        let written = fs::write(unfinished, format!("{} {}\n", position.0, self.url));
        if written.and_then(|()| fs::rename(unfinished, &self.path)).is_ok() {
            self.noted = Some(position);
        }
    }
}
