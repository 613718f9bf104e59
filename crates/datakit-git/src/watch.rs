//! Notices refs that others move: by inotify where there is one, and by looking again every second in any case.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::backend::{ChangeHook, Changed, RefName};
use crate::sys::Watch;

/// How long a change may go unnoticed where the system does not tell of it.
const POLL: Duration = Duration::from_secs(1);

/// How soon the thread notices that it is to end.
const TICK: Duration = Duration::from_millis(100);

/// Whom to tell.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    inner: Arc<HooksInner>,
}

#[derive(Default)]
struct HooksInner {
    hooks: Mutex<Vec<ChangeHook>>,
    stop: AtomicBool,
}

impl Hooks {
    pub fn add(&self, hook: ChangeHook) {
        self.inner.hooks.lock().unwrap_or_else(PoisonError::into_inner).push(hook);
    }

    pub fn stop(&self) {
        self.inner.stop.store(true, Ordering::Relaxed);
    }

    fn tell(&self, changed: Changed<'_>) {
        for hook in self.inner.hooks.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            hook(changed);
        }
    }
}

/// Watches until told to stop.
pub(crate) fn run(folder: &Path, hooks: &Hooks) {
    let mut watch = Watch::new().ok();
    let heads = folder.join("refs/heads");
    if let Some(watch) = &mut watch {
        watch.add(folder).ok();
        add_below(watch, &heads);
    }
    let mut looked = Instant::now();
    while !hooks.inner.stop.load(Ordering::Relaxed) {
        let changed = match &mut watch {
            Some(watch) => watch.wait(TICK).unwrap_or_else(|_| {
                std::thread::sleep(TICK);
                Vec::new()
            }),
            None => {
                std::thread::sleep(TICK);
                Vec::new()
            }
        };
        let mut all = looked.elapsed() >= POLL;
        let mut refs = Vec::new();
        for path in changed {
            if path.is_dir() {
                if let Some(watch) = &mut watch {
                    add_below(watch, &path);
                }
                all |= path.starts_with(&heads);
            } else if path == folder.join("packed-refs") {
                all = true;
            } else {
                refs.extend(name(folder, &path));
            }
        }
        if all {
            looked = Instant::now();
            hooks.tell(Changed::Any);
        } else if !refs.is_empty() {
            refs.sort();
            refs.dedup();
            hooks.tell(Changed::Refs(&refs));
        }
    }
}

fn name(folder: &Path, path: &Path) -> Option<RefName> {
    let relative = path.strip_prefix(folder).ok()?;
    RefName::new(relative.as_os_str().as_bytes())
}

/// Watches a directory and all below it.
fn add_below(watch: &mut Watch, folder: &Path) {
    let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        if watch.add(&folder).is_err() {
            continue;
        }
        let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
        folders.extend(entries.map(|entry| entry.path()).filter(|path| path.is_dir()));
    }
}
