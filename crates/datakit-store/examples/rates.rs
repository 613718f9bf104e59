//! Measures the store: commits a second, watch latency, diff and merge. `rates FOLDER ROW`; prints one figure.
//!
//! Driven by `cargo xtask bench datakit`, which puts peers beside it. FOLDER must not exist.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use datakit_store::{BranchName, Durability, Next, ObjectKind, Options, Store, TreePath};

type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, row] = arguments.as_slice() else { return Err("give a folder and a row".into()) };
    let folder = Path::new(folder);
    let mut out = std::io::stdout();
    match row.as_str() {
        "one" => writeln!(out, "{:.0}", one(folder, Durability::Fsync, 1500)?)?,
        "visible" => writeln!(out, "{:.0}", one(folder, Durability::Visible, 5000)?)?,
        "behind" => writeln!(out, "{:.0}", one(folder, Durability::Behind, 30_000)?)?,
        "lag" => writeln!(out, "{}", lag(folder)?)?,
        "many" => writeln!(out, "{:.0}", many(folder, 64, 200)?)?,
        "loose" => writeln!(out, "{:.0}", loose(folder, 300)?)?,
        "watch" => writeln!(out, "{}", watch(folder, Durability::Visible, 1)?)?,
        "watch-behind" => writeln!(out, "{}", watch(folder, Durability::Behind, 1)?)?,
        "watch-10000" => writeln!(out, "{}", watch(folder, Durability::Visible, 10_000)?)?,
        "open" => writeln!(out, "{}", open_large(folder)?)?,
        "growth" => writeln!(out, "{}", growth(folder)?)?,
        "diff" => writeln!(out, "{}", diff_and_merge(folder)?)?,
        other => return Err(format!("there is no row {other}").into()),
    }
    Ok(())
}

fn open(folder: &Path, durability: Durability) -> Outcome<Store> {
    Ok(Store::open(folder, Options { durability, create: true, ..Options::default() })?)
}

fn put(store: &Store, branch: &BranchName, path: &str, text: &str) -> Outcome<()> {
    let transaction = store.begin(branch)?;
    transaction.write_file(&TreePath::parse(path)?, text.as_bytes())?;
    transaction.commit()?;
    Ok(())
}

/// One client, one small file a commit: commits a second.
fn one(folder: &Path, durability: Durability, n: usize) -> Outcome<f64> {
    let store = open(folder, durability)?;
    let main = BranchName::new("main")?;
    put(&store, &main, "file", "start")?;
    let began = Instant::now();
    for round in 0..n {
        put(&store, &main, "file", &round.to_string())?;
    }
    Ok(n as f64 / began.elapsed().as_secs_f64())
}

/// Clients on disjoint paths, durable: commits a second. Every file must be there afterwards.
fn many(folder: &Path, clients: usize, rounds: usize) -> Outcome<f64> {
    let store = open(folder, Durability::Fsync)?;
    let main = BranchName::new("main")?;
    put(&store, &main, "start", "0")?;
    let failures = AtomicUsize::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for client in 0..clients {
            let (store, main, failures) = (store.clone(), main.clone(), &failures);
            scope.spawn(move || {
                for round in 0..rounds {
                    if put(&store, &main, &format!("c{client}/f{}", round % 16), &round.to_string()).is_err()
                    {
                        failures.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let seconds = began.elapsed().as_secs_f64();
    drop(store);
    let store = open(folder, Durability::Fsync)?;
    let last = store.begin(&main)?;
    for client in 0..clients {
        for file in 0..16usize.min(rounds) {
            let text = last.read_file(&TreePath::parse(format!("c{client}/f{file}"))?)?;
            let found: usize = String::from_utf8(text)?.parse()?;
            if found % 16 != file || found + 16 < rounds {
                return Err(format!("c{client}/f{file} is {found}: a commit is lost").into());
            }
        }
    }
    if failures.load(Ordering::Relaxed) > 0 {
        return Err("commits failed".into());
    }
    Ok((clients * rounds) as f64 / seconds)
}

/// Bytes that 10,000 commits take, each of one file of 200 in a directory: when packed, and after `git gc`; for each.
fn growth(folder: &Path) -> Outcome<String> {
    const COMMITS: u64 = 10_000;
    let store = open(folder, Durability::Visible)?;
    let main = BranchName::new("main")?;
    for n in 0..COMMITS {
        put(&store, &main, &format!("directory/file-{}", n % 200), &format!("{n}\n"))?;
    }
    drop(store);
    let bytes = || -> Outcome<u64> {
        let files = fs::read_dir(folder.join("objects/pack"))?;
        Ok(files.map(|file| Ok(file?.metadata()?.len())).sum::<std::io::Result<u64>>()? / COMMITS)
    };
    let ours = bytes()?;
    let mut git = std::process::Command::new("git");
    if !git.current_dir(folder).args(["gc", "-q"]).status()?.success() {
        return Err("git gc failed".into());
    }
    Ok(format!("{ours} {}", bytes()?))
}

/// The peer in process: three loose objects and the ref, each written, forced to disk and renamed.
fn loose(folder: &Path, n: usize) -> Outcome<f64> {
    let store = open(folder, Durability::Visible)?;
    let (objects, heads) = (folder.join("objects"), folder.join("refs/heads"));
    let write = |path: &Path, bytes: &[u8]| -> Outcome<()> {
        let unfinished = path.with_extension("unfinished");
        let mut file = File::create(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        Ok(fs::rename(&unfinished, path)?)
    };
    let began = Instant::now();
    for round in 0..n {
        for kind in [ObjectKind::Blob, ObjectKind::Tree, ObjectKind::Commit] {
            let text = format!(
                "{kind} {round} with about as many bytes as such an object has, compressed, here and there"
            );
            let id = datakit_git::hash(store.hash(), kind, text.as_bytes()).to_string();
            fs::create_dir_all(objects.join(&id[..2]))?;
            write(&objects.join(&id[..2]).join(&id[2..]), text.as_bytes())?;
        }
        write(&heads.join("peer"), format!("{}\n", "1".repeat(40)).as_bytes())?;
    }
    Ok(n as f64 / began.elapsed().as_secs_f64())
}

/// Milliseconds at the 50th and 99th percentile, and the most: of each list.
fn percentiles(times: &mut [Vec<f64>]) -> String {
    let figures = times.iter_mut().map(|times| {
        times.sort_by(f64::total_cmp);
        let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
        format!("{:.2} {:.2} {:.2}", at(50), at(99), at(100))
    });
    figures.collect::<Vec<_>>().join(" ")
}

/// Milliseconds from an acknowledgement until git would find the commit, when commits are acknowledged before.
fn lag(folder: &Path) -> Outcome<String> {
    let store = open(folder, Durability::Behind)?;
    let main = BranchName::new("main")?;
    let mut times = Vec::new();
    for round in 0..500 {
        let transaction = store.begin(&main)?;
        transaction.write_file(&TreePath::parse("file")?, round.to_string().as_bytes())?;
        let commit = format!("{}\n", transaction.commit()?);
        let began = Instant::now();
        while fs::read_to_string(folder.join("refs/heads/main")).ok().as_deref() != Some(commit.as_str()) {
            std::thread::sleep(Duration::from_micros(50));
        }
        times.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    Ok(percentiles(&mut [times]))
}

/// Milliseconds from a commit to the last wake-up: from its acknowledgement (0 where the watcher woke before), and from
/// its start.
fn watch(folder: &Path, durability: Durability, watchers: usize) -> Outcome<String> {
    let store = open(folder, durability)?;
    let main = BranchName::new("main")?;
    put(&store, &main, "a/file", "start")?;
    let path = TreePath::parse("a/file")?;
    let mut watches = (0..watchers).map(|_| store.watch_path(&main, &path)).collect::<Result<Vec<_>, _>>()?;
    watches.iter_mut().for_each(|watch| {
        watch.try_next();
    });
    let mut last = watches.pop().ok_or("no watcher")?;
    let (to_watcher, rounds) = std::sync::mpsc::channel::<()>();
    let (to_us, woken) = std::sync::mpsc::channel();
    let watcher = std::thread::spawn(move || {
        while rounds.recv().is_ok() {
            let next = last.next(Some(Duration::from_secs(10)));
            if to_us.send((Instant::now(), matches!(next, Next::Value(Some(_))))).is_err() {
                return;
            }
        }
    });
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..500 {
        to_watcher.send(())?;
        // So that it sleeps already, as watchers do.
        std::thread::sleep(Duration::from_micros(300));
        let began = Instant::now();
        put(&store, &main, "a/file", &round.to_string())?;
        let acknowledged = Instant::now();
        let (woken, is_told) = woken.recv()?;
        if !is_told {
            return Err("a watcher slept on".into());
        }
        watches
            .iter_mut()
            .try_for_each(|watch| watch.try_next().map(drop).ok_or("a watcher was not told"))?;
        times[0].push(woken.saturating_duration_since(acknowledged).as_secs_f64() * 1000.0);
        times[1].push(woken.duration_since(began).as_secs_f64() * 1000.0);
    }
    drop(to_watcher);
    watcher.join().map_err(|_| "a watcher panicked")?;
    Ok(percentiles(&mut times))
}

/// Milliseconds until a repository that exists is open, and until a file of `main` is read from it.
fn open_large(folder: &Path) -> Outcome<String> {
    let began = Instant::now();
    let store = Store::open(folder, Options::default())?;
    let opened = began.elapsed().as_secs_f64() * 1000.0;
    let file = store.begin(&BranchName::new("main")?)?.read_file(&TreePath::parse("d500/f500")?)?;
    let read = began.elapsed().as_secs_f64() * 1000.0;
    if file.is_empty() {
        return Err("the file is empty".into());
    }
    Ok(format!("{opened:.1} {read:.1}"))
}

/// Milliseconds for a diff and for a merge of 100,000 files with 10 changes; the commits stay for git to try.
fn diff_and_merge(folder: &Path) -> Outcome<String> {
    let store = open(folder, Durability::Visible)?;
    let (main, other) = (BranchName::new("main")?, BranchName::new("other")?);
    let transaction = store.begin(&main)?;
    for n in 0..100_000 {
        let path = format!("d{}/e{}/f{}", n / 2500, n / 50 % 50, n % 50);
        transaction.write_file(&TreePath::parse(path)?, n.to_string().as_bytes())?;
    }
    let base = transaction.commit()?;
    store.create_branch(&other, base)?;
    for (branch, text) in [(&main, "ours"), (&other, "theirs")] {
        let transaction = store.begin(branch)?;
        for n in 0..10 {
            let path = format!("d{}/e{n}/f{}", n * 4, if text == "ours" { 1 } else { 2 });
            transaction.write_file(&TreePath::parse(path)?, text.as_bytes())?;
        }
        transaction.commit()?;
    }
    drop(store);
    let store = open(folder, Durability::Visible)?;
    let head = store.head(&main)?.ok_or("no head")?;
    let theirs = store.head(&other)?.ok_or("no head")?;
    let began = Instant::now();
    let changes = store.diff(Some(store.commit_of(base)?.tree), Some(store.commit_of(head)?.tree))?;
    let diffed = began.elapsed().as_secs_f64() * 1000.0;
    drop(store);
    let store = open(folder, Durability::Visible)?;
    let transaction = store.begin(&main)?;
    let began = Instant::now();
    let conflicts = transaction.merge(theirs)?;
    let merged = began.elapsed().as_secs_f64() * 1000.0;
    if changes.len() != 10 || !conflicts.is_empty() {
        return Err("the diff or the merge is wrong".into());
    }
    Ok(format!("{diffed:.2} {merged:.2}"))
}
