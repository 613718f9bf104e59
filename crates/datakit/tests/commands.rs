//! The commands for those who want no mount, as a script uses them.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, which say what they skip")]

mod world;

use std::io::Write;
use std::process::{Command, Stdio};

use world::{Server, World, fsck, git};

/// Runs a command on a server; what it says, and its exit code.
fn run_with(server: &Server, input: &[u8], arguments: &[&str]) -> (String, String, i32) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_datakit"))
        .args(arguments)
        .env("DATAKIT", &server.url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr), output.status.code().unwrap())
}

fn run(server: &Server, arguments: &[&str]) -> String {
    let (said, errors, code) = run_with(server, b"", arguments);
    assert_eq!(code, 0, "datakit {arguments:?}: {errors}");
    said
}

fn fails(server: &Server, arguments: &[&str], code: i32) -> (String, String) {
    let (said, errors, found) = run_with(server, b"", arguments);
    assert_eq!(found, code, "datakit {arguments:?}: {errors}");
    assert_eq!(errors.lines().count(), 1, "datakit {arguments:?}: {errors}");
    (said, errors)
}

#[test]
fn changes_are_committed_and_read() {
    let world = World::new();
    let server = Server::start(&world, "socket", &[]);
    let first = run(&server, &["commit", "main", "-m", "first", "--set", "a/b=text", "--set", "c=1"]);
    assert_eq!(run(&server, &["branch"]), format!("{} main\n", first.trim()));
    assert_eq!(run(&server, &["branch", "head", "main"]), first);
    assert_eq!(run(&server, &["cat", "main", "a/b"]), "text\n");
    assert_eq!(run(&server, &["ls", "main"]), "a/\nc\n");
    let (put, _, code) = run_with(&server, b"\x00bytes", &["put", "main", "x/y"]);
    assert_eq!(code, 0);
    assert_eq!(run(&server, &["cat", put.trim(), "x/y"]), "\0bytes");
    assert_eq!(run(&server, &["diff", first.trim(), "main"]), "+ x/y\n");
    run(&server, &["rm", "main", "a", "-m", "gone"]);
    assert_eq!(run(&server, &["ls", "main"]), "c\nx/\n");
    let log = run(&server, &["log", "main"]);
    let messages: Vec<_> = log.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(messages, ["gone", "Put x/y", "first"]);
    assert_eq!(git(&world.repo, &["log", "--format=%s", "main"]), messages.join("\n"));
    let json = run(&server, &["log", "main", "-n", "1", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["message"], "gone");
    assert_eq!(json["parents"][0], put.trim());
    fsck(&world.repo);
}

#[test]
fn a_tar_is_committed_whole() {
    let world = World::new();
    let server = Server::start(&world, "socket", &[]);
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, mode: u32, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(mode);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    add("./bin/tool", 0o755, b"#!/bin/sh\n");
    add("doc/readme", 0o644, b"read me\n");
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    tar.append_link(&mut link, "latest", "doc/readme").unwrap();
    let tar = tar.into_inner().unwrap();
    let (_, errors, code) = run_with(&server, &tar, &["commit", "main", "-m", "tar", "--tar", "-"]);
    assert_eq!(code, 0, "{errors}");
    let listed = git(&world.repo, &["ls-tree", "-r", "main"]);
    let modes: Vec<_> = listed.lines().map(|line| (&line[..6], line.split('\t').nth(1).unwrap())).collect();
    assert_eq!(modes, [("100755", "bin/tool"), ("100644", "doc/readme"), ("120000", "latest")]);
    assert_eq!(run(&server, &["cat", "main", "latest"]), "doc/readme");
    let (_, errors, code) =
        run_with(&server, b"not a tar at all", &["commit", "main", "-m", "x", "--tar", "-"]);
    assert_eq!(code, 2, "{errors}");
}

#[test]
fn conflicts_are_listed_and_can_be_decided() {
    let world = World::new();
    let server = Server::start(&world, "socket", &[]);
    run(&server, &["commit", "main", "-m", "base", "--set", "a/b=base", "--set", "c=base"]);
    run(&server, &["branch", "create", "side/way", "main"]);
    run(&server, &["commit", "side/way", "-m", "theirs", "--set", "a/b=theirs", "--set", "d=theirs"]);
    run(&server, &["commit", "main", "-m", "ours", "--set", "a/b=ours"]);
    let head = run(&server, &["branch", "head", "main"]);
    let (said, _) = fails(&server, &["merge", "main", "side/way"], 1);
    assert_eq!(said, "conflict a/b\n");
    let (said, _) = fails(&server, &["merge", "main", "side/way", "--json"], 1);
    assert_eq!(said, "{\"conflicts\":[\"a/b\"]}\n");
    assert_eq!(run(&server, &["branch", "head", "main"]), head);
    run(&server, &["merge", "main", "side/way", "--theirs"]);
    assert_eq!(run(&server, &["cat", "main", "a/b"]), "theirs\n");
    assert_eq!(run(&server, &["cat", "main", "d"]), "theirs\n");
    fsck(&world.repo);
}

#[test]
fn a_watch_resumes_where_it_ended() {
    let world = World::new();
    let server = Server::start(&world, "socket", &[]);
    let commit = |n: &str| run(&server, &["commit", "main", "-m", n, "--set", &format!("n={n}")]);
    let first = commit("1");
    let now = run(&server, &["watch", "main", "--from", "now", "-n", "1"]);
    let (number, head) = now.trim().split_once(' ').unwrap();
    assert_eq!(head, first.trim());
    // Nobody watches meanwhile.
    let heads = ["2", "3", "4"].map(commit);
    let next = (number.parse::<u64>().unwrap() + 1).to_string();
    let told = run(&server, &["watch", "main", "--from", &next, "-n", "3"]);
    let told: Vec<_> = told.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(told, heads.each_ref().map(|head| head.trim()));
    let told = run(&server, &["watch", "main", "n", "-n", "1", "--json"]);
    assert!(told.starts_with("{\"node\":\"F-"), "{told}");
}

#[test]
fn other_repositories_are_fetched_from_and_pushed_to() {
    let world = World::new();
    let server = Server::start(&world, "socket", &[]);
    let head = run(&server, &["commit", "main", "-m", "ours", "--set", "f=1"]);
    git(world.folder.path(), &["init", "-q", "--bare", "other.git"]);
    let other = world.path("other.git");
    let url = format!("file://{}", other.display());
    run(&server, &["push", &url, "main"]);
    assert_eq!(git(&other, &["rev-parse", "main"]), head.trim());
    git(world.folder.path(), &["clone", "-q", "other.git", "work"]);
    git(&world.path("work"), &["commit", "-q", "--allow-empty", "-m", "theirs"]);
    git(&world.path("work"), &["push", "-q", "origin", "HEAD:main"]);
    let fetched = run(&server, &["fetch", &url, "main", "--into", "main"]);
    assert_eq!(fetched.trim(), git(&other, &["rev-parse", "main"]));
    assert_eq!(run(&server, &["branch", "head", "main"]), fetched);
    let (_, errors) = fails(&server, &["fetch", &url, "nowhere"], 1);
    assert!(errors.contains("no branch 'nowhere'"), "{errors}");
}

#[test]
fn what_a_person_gets_wrong_is_one_line_and_exit_code_2() {
    let world = World::new();
    let server = Server::start(&world, "socket", &[]);
    run(&server, &["commit", "main", "-m", "x", "--set", "f=1"]);
    fails(&server, &["cat", "main", "../f"], 2);
    fails(&server, &["cat", "absent", "f"], 2);
    fails(&server, &["commit", "main", "-m", "nothing"], 2);
    fails(&server, &["commit", "main", "-m", "x", "--set", "no value"], 2);
    fails(&server, &["put", "main", "f", "/no/such/file"], 2);
    fails(&server, &["branch", "--at", "nonsense"], 2);
    fails(&server, &["log", "main", "--nonsense"], 2);
    fails(&server, &["commit", "main"], 2);
    fails(&server, &["nonsense"], 2);
    let (_, errors) = fails(&server, &["put", "bad..name", "f"], 2);
    assert!(errors.contains("'bad..name' cannot be the name of a branch"), "{errors}");
    let (_, errors) = fails(&server, &["push", "/no/such", "absent"], 2);
    assert!(errors.contains("no branch 'absent'"), "{errors}");
    let (_, errors) = fails(&server, &["cat", "main", "no/where"], 1);
    assert_eq!(errors, "datakit: no/where: not there\n");
    let (_, errors) = fails(&server, &["rm", "main", "no/where"], 1);
    assert_eq!(errors, "datakit: no/where: not there\n");
    let (_, errors) = fails(&server, &["fetch", "/no/such", "main"], 1);
    assert!(errors.starts_with("datakit: cannot fetch /no/such"), "{errors}");
    fails(&server, &["cat", "main", "absent"], 1);
    fails(&server, &["cat", "main", ""], 1);
    fails(&server, &["branch", "--at", "unix:///no/such/socket"], 1);
}

/// Commits `d/f` and damages one of the objects behind it as `damage` says; its id.
fn damage(world: &World, object: &str, damage: fn(&std::path::Path)) -> String {
    let mut server = Server::start(world, "sound", &[]);
    run(&server, &["commit", "main", "-m", "x", "--set", "d/f=1", "--set", "g=2"]);
    server.kill();
    // Loose, by git, and without the packs and the journal of the server, which would have it too.
    let loose = world.path("loose.git");
    git(&world.repo, &["init", "-q", "--bare", &loose.display().to_string()]);
    let pushed = git(&world.repo, &["rev-parse", "main"]);
    git(
        &loose,
        &["-c", "fetch.unpackLimit=100", "fetch", "-q", &world.repo.display().to_string(), "main:main"],
    );
    assert_eq!(git(&loose, &["rev-parse", "main"]), pushed);
    std::fs::remove_dir_all(&world.repo).unwrap();
    std::fs::rename(&loose, &world.repo).unwrap();
    let id = git(&world.repo, &["rev-parse", object]);
    damage(&world.repo.join("objects").join(&id[..2]).join(&id[2..]));
    id
}

fn garble(file: &std::path::Path) {
    std::fs::remove_file(file).unwrap();
    std::fs::write(file, "this is not zlib").unwrap();
}

fn remove(file: &std::path::Path) {
    std::fs::remove_file(file).unwrap();
}

/// A person who reads `d/f` of a damaged repository is told which object it is, and never that there is no such file.
fn damage_is_named(object: &str, how: fn(&std::path::Path)) {
    let world = World::new();
    let id = damage(&world, object, how);
    let repo = world.repo.display().to_string();
    let server = Server::start(&world, "socket", &[]);

    let (_, errors) = fails(&server, &["cat", "main", "d/f", "--git", &repo], 1);
    assert!(errors.contains(&id), "{errors}");
    assert_eq!(run(&server, &["ls", "main", "--git", &repo]), "d/\ng\n", "the rest is read");

    let (_, errors) = fails(&server, &["cat", "main", "d/f"], 1);
    assert!(errors.contains("input/output error") && errors.contains("log"), "{errors}");
    let log = || std::fs::read_to_string(world.path("socket.log")).unwrap();
    let began = std::time::Instant::now();
    while !log().contains(&id) {
        assert!(
            began.elapsed() < std::time::Duration::from_secs(30),
            "the log does not name {id}: {}",
            log()
        );
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn a_corrupt_file_is_named() {
    damage_is_named("main:d/f", garble);
}

#[test]
fn a_missing_file_is_named() {
    damage_is_named("main:d/f", remove);
}

#[test]
fn a_corrupt_directory_is_named() {
    damage_is_named("main:d", garble);
}

#[test]
fn a_missing_directory_is_named() {
    damage_is_named("main:d", remove);
}

#[test]
fn a_repository_that_cannot_be_written_is_read() {
    let world = World::new();
    let server = Server::start(&world, "socket", &[]);
    run(&server, &["commit", "main", "-m", "first", "--set", "a/b=text"]);
    drop(server);
    let script = "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" || exit 77
        for task in 'cat main a/b' 'ls main' 'branch' 'commit main -m second --set c=1' 'branch create other main'; do
            \"$0\" $task --git \"$1\" 2>&1; echo \"= $?\"
        done";
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", script, env!("CARGO_BIN_EXE_datakit")]);
    let output = match command.arg(&world.repo).output() {
        Ok(output) if output.status.code() != Some(77) => output,
        other => return println!("SKIP: no mount namespace: {other:?}"),
    };
    let said = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[..4], ["text", "= 0", "a/", "= 0"], "{said}");
    assert!(lines[4].ends_with(" main") && lines[5] == "= 0", "{said}");
    for (at, branch) in [(6, "main"), (8, "other")] {
        assert!(lines[at].starts_with(&format!("datakit: {branch}: the server refused: ")), "{said}");
        assert!(lines[at].contains("ead-only file system"), "{said}");
        assert_eq!(lines[at + 1], "= 1", "{said}");
    }
    fsck(&world.repo);
}
