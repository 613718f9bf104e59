//! Repositories to fetch from and push to, made by real git.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use datakit_git::remote::{Outcome, Remote, Transfer, Update};
use gix::ObjectId;

/// A folder with repositories, gone when dropped.
pub struct World {
    pub folder: tempfile::TempDir,
}

/// Says why a test does nothing, when there is no git, or when it was run elsewhere.
pub fn has_git() -> bool {
    let has = Command::new("git").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !has {
        println!("SKIP: no git");
    }
    has && !was_run_elsewhere()
}

/// What goes before `http.sslCAInfo` and its like.
const TRUST: [&str; 2] = ["GIT_SSL_CAINFO", "GIT_SSL_NO_VERIFY"];

/// Where the environment says whom git trusts, the test is run in a process that does not have that.
fn was_run_elsewhere() -> bool {
    if TRUST.iter().all(|name| std::env::var_os(name).is_none()) {
        return false;
    }
    let thread = std::thread::current();
    let Some(test) = thread.name().filter(|name| *name != "main") else {
        println!("SKIP: {TRUST:?} say whom git trusts, and the test's name is not known");
        return true;
    };
    let mut command = Command::new(std::env::current_exe().unwrap());
    for name in TRUST {
        command.env_remove(name);
    }
    let output = command.args(["--exact", test, "--nocapture"]).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    println!("{said}");
    assert!(output.status.success() && said.contains("1 passed"), "{test} failed elsewhere");
    true
}

/// A git command in `folder`, untouched by the configuration of whoever runs the tests.
pub fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    command
        .args(["-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"])
        .args(arguments)
        .current_dir(folder)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0");
    command
}

/// Runs git and takes what it prints.
pub fn git(folder: &Path, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = command(folder, arguments).output().unwrap();
    assert!(status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap().trim().to_owned()
}

impl World {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An empty bare repository that takes pushes over the web.
    pub fn bare(&self, name: &str, arguments: &[&str]) -> PathBuf {
        let path = self.path(name);
        git(self.folder.path(), &[&["init", "-q", "--bare"], arguments, &[name]].concat());
        git(&path, &["config", "http.receivepack", "true"]);
        git(&path, &["config", "receive.denyDeleteCurrent", "ignore"]);
        path
    }

    /// A repository with `commits` commits on `main`, each with a few files that change and some that do not.
    pub fn work(&self, name: &str, commits: usize, arguments: &[&str]) -> PathBuf {
        let path = self.path(name);
        git(self.folder.path(), &[&["init", "-q"], arguments, &[name]].concat());
        for file in 0..20 {
            let folder = path.join(format!("d{}/e", file % 4));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(format!("f{file}")), format!("{file}\n").repeat(50)).unwrap();
        }
        for number in 0..commits {
            commit(&path, "d1/e/f1", &format!("{number}\n").repeat(100));
        }
        path
    }
}

/// Changes a file and commits it, with all that is new.
pub fn commit(work: &Path, file: &str, text: &str) -> ObjectId {
    std::fs::write(work.join(file), text).unwrap();
    git(work, &["add", "-A"]);
    git(work, &["commit", "-q", "--allow-empty", "-m", &format!("change {file}")]);
    head(work, "HEAD")
}

/// Where a ref points.
pub fn head(repository: &Path, reference: &str) -> ObjectId {
    git(repository, &["rev-parse", "--verify", reference]).parse().unwrap()
}

/// Where a branch points, if it is there.
pub fn try_head(repository: &Path, branch: &str) -> Option<ObjectId> {
    let found = command(repository, &["rev-parse", "--verify", "-q", branch]).output().unwrap();
    String::from_utf8(found.stdout).unwrap().trim().parse().ok()
}

/// What fsck has to say, which should be nothing.
pub fn fsck(repository: &Path) {
    let Output { status, stdout, stderr } =
        command(repository, &["fsck", "--full", "--strict"]).output().unwrap();
    let said = [stdout, stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(status.success() && !said.contains("missing"), "fsck: {said}");
}

/// The remote `r` of a repository with a work tree.
pub fn remote(work: &Path, url: &str) -> Remote {
    Remote::new(&work.join(".git"), "r", url).unwrap()
}

/// An update of a branch.
pub fn update(branch: &str, new: Option<ObjectId>, force: bool) -> Update {
    Update { reference: format!("refs/heads/{branch}"), new, force }
}

/// Pushes one update that goes through or is refused, and returns how many objects went.
pub fn push_one(remote: &Remote, update: Update) -> (Outcome, u64) {
    let transfer = Transfer::new();
    let pushed = remote.push(vec![update], false, &transfer).unwrap();
    assert_eq!(pushed.refs.len(), 1);
    (pushed.refs[0].1.clone(), pushed.objects)
}

/// A transfer nobody watches.
pub fn quiet() -> Arc<Transfer> {
    Transfer::new()
}
