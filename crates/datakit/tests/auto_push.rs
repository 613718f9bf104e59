//! `datakit serve --auto-push`: another repository that becomes what ours is, whatever happens to either.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, which say what they skip")]

mod world;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use world::{PATIENCE, Server, World, fsck, git, git_command};

/// Where the branch of a repository is, if it is there.
fn head(repo: &Path, branch: &str) -> Option<String> {
    let found = git_command(repo, &["rev-parse", "--verify", "-q", branch]).output().unwrap();
    let id = String::from_utf8(found.stdout).unwrap().trim().to_owned();
    (!id.is_empty()).then_some(id)
}

fn wait_until(what: &str, is_done: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_done() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A world with another bare repository, and the argument that has changes pushed there.
fn with_mirror() -> (World, PathBuf, String) {
    let world = World::new();
    git(world.folder.path(), &["init", "-q", "--bare", "mirror.git"]);
    let mirror = world.path("mirror.git");
    let url = format!("file://{}", mirror.display());
    (world, mirror, url)
}

fn commit(server: &Server, branch: &str, text: &str) -> String {
    let branch = server.connect().branch(branch).unwrap();
    branch.update(|t| t.write("f", text.as_bytes())).unwrap().as_str().to_owned()
}

/// Tells a server to end, and waits until it has.
fn stop(mut server: Server) {
    assert!(Command::new("kill").arg(server.child.id().to_string()).status().unwrap().success());
    assert!(server.child.wait().unwrap().success());
}

#[test]
fn whatever_changes_a_branch_the_other_repository_follows() {
    let (world, mirror, url) = with_mirror();
    let server = Server::start(&world, "socket", &["--auto-push", &url]);
    let first = commit(&server, "main", "1");
    let side = commit(&server, "side/way", "2");
    wait_until("commits are not pushed", || head(&mirror, "main") == Some(first.clone()));
    wait_until("nor the other branch", || head(&mirror, "side/way") == Some(side.clone()));
    // Real git moves and deletes branches of the served repository.
    let work = world.clone("work");
    git(&work, &["checkout", "-q", "main"]);
    git(&work, &["commit", "-q", "--allow-empty", "-m", "by git"]);
    git(&work, &["push", "-q", "origin", "main", ":side/way"]);
    let pushed = git(&work, &["rev-parse", "main"]);
    wait_until("what git pushed is not passed on", || head(&mirror, "main") == Some(pushed.clone()));
    wait_until("a deleted branch stays", || head(&mirror, "side/way").is_none());
    // What is elsewhere alone is lost: so it is with `git push --force`.
    git(&mirror, &["update-ref", "refs/heads/main", &first]);
    git(&mirror, &["update-ref", "refs/heads/theirs", &first]);
    let last = commit(&server, "main", "3");
    wait_until("nothing is forced", || head(&mirror, "main") == Some(last.clone()));
    assert_eq!(head(&mirror, "theirs"), Some(first), "a branch that is not ours");
    drop(server);
    fsck(&mirror);
    fsck(&world.repo);
}

#[test]
fn a_repository_that_refuses_or_is_away_has_everything_when_it_comes_back() {
    let (world, mirror, url) = with_mirror();
    let hook = mirror.join("hooks/pre-receive");
    fs::write(&hook, "#!/bin/sh\necho not today >&2\nexit 1\n").unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let server = Server::start(&world, "socket", &["--auto-push", &url]);
    let log = || fs::read_to_string(world.path("socket.log")).unwrap();
    commit(&server, "main", "1");
    wait_until("a refusal is not logged", || log().contains("pre-receive hook declined"));
    assert!(log().contains("trying again in"), "{}", log());
    // Commits do not wait for it.
    let second = commit(&server, "main", "2");
    assert_eq!(head(&world.repo, "main"), Some(second.clone()));
    assert_eq!(head(&mirror, "main"), None);
    fs::remove_file(&hook).unwrap();
    wait_until("it is not tried again", || head(&mirror, "main") == Some(second.clone()));

    fs::rename(&mirror, world.path("away.git")).unwrap();
    let before = log().len();
    let third = commit(&server, "main", "3");
    wait_until("a failure is not logged", || log()[before..].contains("trying again in"));
    fs::rename(world.path("away.git"), &mirror).unwrap();
    wait_until("it is not pushed when it is back", || head(&mirror, "main") == Some(third.clone()));
    drop(server);
    fsck(&mirror);
}

#[test]
fn what_a_server_did_not_come_to_push_is_pushed_all_the_same() {
    let (world, mirror, url) = with_mirror();
    // A server that is told to end pushes first.
    let server = Server::start(&world, "socket", &["--auto-push", &url, "--durability", "behind"]);
    let first = commit(&server, "main", "1");
    stop(server);
    assert_eq!(head(&world.repo, "main"), Some(first.clone()), "it is in git");
    assert_eq!(head(&mirror, "main"), Some(first), "it was pushed");
    // One that is killed leaves it to the next.
    let mut server = Server::start(&world, "socket", &["--auto-push", &url]);
    let second = commit(&server, "main", "2");
    server.kill();
    // And so does whoever commits while there is none.
    let side = git(&world.repo, &["commit-tree", "-m", "side", "main^{tree}"]);
    git(&world.repo, &["update-ref", "refs/heads/side", &side]);
    drop(server);
    let server = Server::start(&world, "socket", &["--auto-push", &url]);
    wait_until("what was killed", || head(&mirror, "main") == Some(second.clone()));
    wait_until("what nobody served", || head(&mirror, "side") == Some(side.clone()));
    stop(server);
    // Nobody's business: it did not change while anybody pushed there.
    git(world.folder.path(), &["init", "-q", "--bare", "another.git"]);
    let another = format!("file://{}", world.path("another.git").display());
    let server = Server::start(&world, "socket", &["--auto-push", &another]);
    let third = commit(&server, "main", "3");
    wait_until("another repository", || head(&world.path("another.git"), "main") == Some(third.clone()));
    assert_eq!(head(&world.path("another.git"), "side"), None);
    stop(server);
    fsck(&mirror);
}

#[test]
fn where_nothing_can_be_pushed_to_is_said_at_once() {
    let world = World::new();
    for url in ["nonsense://x/y", "", "file://host/path"] {
        let serve = ["serve", "--listen", "unix:///no/where", "--auto-push", url, "--git"];
        let output =
            Command::new(env!("CARGO_BIN_EXE_datakit")).args(serve).arg(&world.repo).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{url}: {said}");
        assert_eq!(said.lines().count(), 1, "{url}: {said}");
    }
}
