//! The commands of `docs/guide/datakit.md`, as they are written there.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, which say what they skip")]

mod world;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use world::{PATIENCE, World, git, has, has_fuse};

const GUIDE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guide/datakit.md");
const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../clients/python");

/// The blocks of code, without their indentation.
fn blocks(text: &str) -> Vec<String> {
    let mut blocks = vec![String::new()];
    for line in text.lines() {
        match line.strip_prefix("    ") {
            Some(code) => {
                let last = blocks.last_mut().unwrap();
                last.push_str(code);
                last.push('\n');
            }
            None if line.is_empty() => {}
            None => blocks.push(String::new()),
        }
    }
    blocks.retain(|block| !block.is_empty());
    blocks
}

/// What never ends by itself is ended.
fn bounded(block: &str) -> String {
    let waits = |line: &str| line.contains("head.live") || line.starts_with("datakit watch");
    let lines = block.lines().map(|line| {
        let code = line.split("  #").next().unwrap_or_default();
        if waits(line) { format!("timeout 2 {code} || [ $? = 124 ]\n") } else { format!("{line}\n") }
    });
    lines.collect()
}

fn shell(script: &str, at: &Path, socket: &str) -> Output {
    let program = Path::new(env!("CARGO_BIN_EXE_datakit"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("sh");
    command.args(["-e", "-u", "-c", script]).current_dir(at).env("PATH", path).env("DATAKIT", socket);
    command.stdin(Stdio::null()).output().unwrap()
}

fn good(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Ends with the test, failed or not, by which it unmounts what it mounted.
struct Server(Child);

impl Server {
    fn ask_to_end(&self) {
        Command::new("kill").arg(self.0.id().to_string()).status().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.ask_to_end();
            let _ = self.0.wait();
        }
    }
}

/// A repository with what the guide speaks of, a branch to merge, and another repository that is ahead.
fn repositories() -> World {
    let world = World::new();
    let clone = world.clone("clone");
    git(&clone, &["symbolic-ref", "HEAD", "refs/heads/main"]);
    fs::create_dir(clone.join("hosts")).unwrap();
    for (path, text) in [("hosts/mail", "10.0.0.1\n"), ("hosts/old", "10.0.0.9\n")] {
        fs::write(clone.join(path), text).unwrap();
    }
    let commit = |message: &str| {
        git(&clone, &["add", "-A"]);
        git(&clone, &["commit", "-q", "-m", message]);
    };
    commit("first");
    git(&clone, &["push", "-q", "origin", "main"]);
    git(&clone, &["checkout", "-q", "-b", "side"]);
    fs::write(clone.join("side"), "side\n").unwrap();
    commit("side");
    git(&clone, &["push", "-q", "origin", "side"]);
    git(&clone, &["checkout", "-q", "main"]);
    fs::write(clone.join("far"), "far\n").unwrap();
    commit("far");
    git(world.folder.path(), &["clone", "-q", "--bare", "clone", "far.git"]);
    world
}

#[test]
fn the_guide_does_what_it_says() {
    if !has("git") || !has_fuse() {
        return;
    }
    let world = repositories();
    let (mount, import) = (world.path("mount"), world.path("import"));
    fs::create_dir(&mount).unwrap();
    fs::create_dir(&import).unwrap();
    fs::write(import.join("imported"), "text\n").unwrap();
    let socket = format!("unix://{}", world.path("datakit.sock").display());
    let far = format!("file://{}", world.path("far.git").display());
    let mut text = fs::read_to_string(GUIDE).unwrap();
    for (written, here) in [
        ("/mnt/datakit", mount.display().to_string()),
        ("unix:///run/datakit.sock", socket.clone()),
        ("https://example.com/r.git", far.clone()),
        ("ssh://git@example.com/r.git", far),
    ] {
        assert!(text.contains(written), "the guide no longer speaks of {written}");
        text = text.replace(written, &here);
    }
    let blocks = blocks(&text);
    let [serve, read, change, commands, python] = &blocks[..] else {
        panic!("the guide has other blocks: {blocks:#?}")
    };

    let program = env!("CARGO_BIN_EXE_datakit");
    let words: Vec<&str> = serve.split_whitespace().skip(1).collect();
    let server = Command::new(program).args(words).current_dir(world.folder.path()).spawn().unwrap();
    let mut server = Server(server);
    let began = Instant::now();
    while !mount.join("branch").exists() {
        assert!(began.elapsed() < PATIENCE, "it is not mounted");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }

    let seen = good(&shell(&bounded(read), &import, &socket));
    let head = git(&world.repo, &["rev-parse", "main"]);
    let head = head.trim();
    assert_eq!(seen, format!("{head}\n10.0.0.1\n{head}\n"));
    good(&shell(&bounded(change), &mount, &socket));
    assert_eq!(git(&world.repo, &["log", "-1", "--format=%s", "main"]).trim(), "Move mail");
    assert_eq!(git(&world.repo, &["show", "main:hosts/mail"]).trim(), "10.0.0.2");
    let said = good(&shell(&bounded(commands), &import, &socket));
    assert!(said.contains("10.0.0.2"), "{said}");
    let files = git(&world.repo, &["ls-tree", "-r", "--name-only", "main"]);
    assert_eq!(files.split_whitespace().collect::<Vec<_>>(), ["far", "hosts/mail", "imported", "side"]);
    let (ours, theirs) =
        (git(&world.repo, &["rev-parse", "main"]), git(&world.path("far.git"), &["rev-parse", "main"]));
    assert_eq!(ours, theirs, "it was pushed");
    if has("python3") {
        let mut client = Command::new("python3");
        client.args(["-c", python]).env("PYTHONPATH", CLIENT).env("PYTHONDONTWRITEBYTECODE", "1");
        good(&client.output().unwrap());
        assert_eq!(git(&world.repo, &["log", "-1", "--format=%s", "main"]).trim(), "Move mail");
    }
    git(&world.repo, &["fsck", "--full", "--strict"]);
    server.ask_to_end();
    assert!(server.0.wait().unwrap().success());
}
