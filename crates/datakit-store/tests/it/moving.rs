//! Objects that real git moves between packs, and from loose to packed and back, while they are read.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use datakit_git::{Backend as _, ObjectId, Repository};

use crate::{git, git_command};

/// Commits whose objects are read, on each of two branches.
const COMMITS: usize = 60;

/// Reads by one handle on the repository, before a new one that knows nothing of it.
const READS: usize = 400;

/// A line of commits on a branch, each with a file of its own.
fn import(folder: &std::path::Path, branch: &str) {
    use std::io::Write as _;
    let mut child =
        git_command(folder, &["fast-import", "--quiet"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for n in 0..COMMITS {
        let text = format!("{branch} {n}");
        write!(stdin, "commit refs/heads/{branch}\ncommitter a <a@b> {n} +0000\ndata 1\nx\n").unwrap();
        writeln!(stdin, "M 100644 inline d/{branch}{n}\ndata {}\n{text}", text.len()).unwrap();
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

/// What git does to a repository now and then. `side` comes and goes, so that what it holds is loosened and packed.
fn move_objects(folder: &std::path::Path, round: usize, side: &str) {
    let tree = git(folder, &["rev-parse", "main^{tree}"]);
    let commit = git(folder, &["commit-tree", "-m", &round.to_string(), "-p", "main", &tree]);
    git(folder, &["update-ref", "refs/heads/main", &commit]);
    match round % 6 {
        0 => drop(git(folder, &["repack", "-adq"])),
        1 => {
            git(folder, &["update-ref", "-d", "refs/heads/side"]);
            git(folder, &["repack", "-Adq"]);
        }
        2 => {
            git(folder, &["update-ref", "refs/heads/side", side]);
            git(folder, &["repack", "-dq"]);
        }
        3 => drop(git(folder, &["multi-pack-index", "write"])),
        4 => {
            git(folder, &["multi-pack-index", "repack"]);
            git(folder, &["multi-pack-index", "expire"]);
        }
        _ => drop(git(folder, &["gc", "-q"])),
    }
}

#[test]
fn an_object_is_found_wherever_git_moves_it() {
    let folder = tempfile::tempdir().unwrap();
    git(folder.path(), &["init", "-q", "--bare", "."]);
    import(folder.path(), "main");
    import(folder.path(), "side");
    let side = git(folder.path(), &["rev-parse", "side"]);
    let listed = git(folder.path(), &["rev-list", "--objects", "--all"]);
    let ids: Vec<ObjectId> = listed.lines().map(|line| line[..40].parse().unwrap()).collect();
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    let rounds = if std::env::var_os("CORACLE_SOAK").is_some() { 1200 } else { 12 };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|reader| {
                let (ids, stop, reads) = (&ids, &stop, &reads);
                let folder = folder.path();
                scope.spawn(move || {
                    let mut at = reader * ids.len() / 2;
                    while !stop.load(Ordering::Relaxed) {
                        let repository = Repository::open(folder, datakit_git::Options::default()).unwrap();
                        for _ in 0..READS {
                            at = (at + 7) % ids.len();
                            repository.read(ids[at]).unwrap();
                            reads.fetch_add(1, Ordering::Relaxed);
                        }
                        let missing = ObjectId::from_bytes_or_panic(&[reader as u8; 20]);
                        let error = repository.read(missing).unwrap_err();
                        assert!(matches!(error, datakit_git::ReadError::Missing { .. }), "{error}");
                    }
                })
            })
            .collect();
        for round in 0..rounds {
            move_objects(folder.path(), round, &side);
            if readers.iter().any(std::thread::ScopedJoinHandle::is_finished) {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
    println!("{} reads in {rounds} rounds", reads.into_inner());
    crate::fsck(folder.path());
}
