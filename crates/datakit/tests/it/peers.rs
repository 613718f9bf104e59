//! Real programs beside and inside: git on the repository, a shell on the mount.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::doors::{by_fuse, through_all, visible};
use crate::streams::{follow, line};

#[test]
fn git_clones_pushes_and_packs_while_it_is_served() {
    through_all(|world| {
        world.commit("main", "f", "ours\n");
        let folder = tempfile::tempdir().unwrap();
        let clone = folder.path().join("clone");
        let path = world.repository.to_str().unwrap();
        let heads = follow(world, "branch/main/head.live");
        assert_eq!(line(&heads), world.git(&["rev-parse", "main"]));
        let file = follow(world, "branch/main/watch/g.node/tree.live");
        assert_eq!(line(&file), "\n");
        world.git(&["clone", "-q", "-b", "main", path, clone.to_str().unwrap()]);
        std::fs::write(clone.join("g"), "theirs\n").unwrap();
        let inside = clone.to_str().unwrap();
        world.git(&["-C", inside, "add", "."]);
        world.git(&["-C", inside, "commit", "-qm", "pushed"]);
        world.git(&["-C", inside, "push", "-q", "origin", "main"]);
        let pushed = world.git(&["rev-parse", "main"]);
        assert_eq!(world.text("branch/main/head").trim(), pushed.trim());
        assert_eq!(line(&heads), pushed, "{}", world.name);
        assert_ne!(line(&file), "\n", "{}", world.name);
        world.git(&["gc", "-q"]);
        world.commit("main", "h", "after\n");
        assert_eq!(world.door.list("branch/main/ro").unwrap(), ["f", "g", "h"], "{}", world.name);
        world.git(&["fsck", "--full", "--strict"]);
    });
}

#[test]
fn a_commit_in_a_served_working_tree_wakes_watches() {
    through_all(|world| {
        world.commit("main", "f", "ours\n");
        let folder = tempfile::tempdir().unwrap();
        let tree = folder.path().join("tree");
        let tree = tree.to_str().unwrap();
        // The work tree shares refs and objects with what is served.
        world.git(&["worktree", "add", "-q", tree, "main"]);
        let heads = follow(world, "branch/main/head.live");
        assert_eq!(line(&heads), world.git(&["rev-parse", "main"]), "{}", world.name);
        std::fs::write(folder.path().join("tree/f"), "theirs\n").unwrap();
        world.git(&["-C", tree, "commit", "-qam", "outside"]);
        assert_eq!(line(&heads), world.git(&["rev-parse", "main"]), "{}", world.name);
        assert_eq!(world.text("branch/main/ro/f"), "theirs\n");
    });
}

#[test]
fn git_works_on_a_working_tree() {
    let Some(world) = by_fuse(visible()) else { return };
    world.commit("main", "f", "text\n");
    world.door.make_directory("branch/main/transactions/t").unwrap();
    let mount = world.repository.with_file_name("mount");
    let rw = mount.join("branch/main/transactions/t/rw");
    let own = tempfile::tempdir().unwrap();
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .arg("--git-dir")
            .arg(own.path().join("own.git"))
            .arg("--work-tree")
            .arg(&rw)
            .args(["-c", "user.name=a", "-c", "user.email=a@b"])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-qm", "first"]);
    std::fs::write(rw.join("f"), "next\n").unwrap();
    assert_eq!(git(&["status", "--porcelain"]), " M f\n");
    git(&["checkout", "-q", "f"]);
    git(&["mv", "f", "g"]);
    git(&["commit", "-qm", "second"]);
    git(&["checkout", "-q", "HEAD~1"]);
    assert_eq!(std::fs::read(rw.join("f")).unwrap(), b"text\n");
    assert!(!rw.join("g").exists());
}

#[test]
fn a_shell_loop_builds_each_head() {
    let Some(world) = by_fuse(visible()) else { return };
    let mount = world.repository.with_file_name("mount");
    world.commit("master", "f", "one\n");
    let script = r#"
        n=0
        while read -r hash; do
            result="branch/built-of-$hash"; mkdir -p "$result/transactions/build"
            [ "$(cat "$result/head")" = "" ] || continue
            t="$result/transactions/build"
            echo "$hash" > "$t/merge"
            tr a-z A-Z < "$t/rw/f" > "$t/rw/log"
            echo PASSED > "$t/msg"
            echo commit > "$t/ctl"
            echo "built $hash"; n=$((n+1)); [ $n = 2 ] && exit
        done < branch/master/head.live"#;
    let child = Command::new("sh")
        .args(["-c", script])
        .current_dir(&mount)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let first = world.text("branch/master/head").trim().to_owned();
    let start = Instant::now();
    while world.door.read(&format!("branch/built-of-{first}/ro/log")).is_err() {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(10));
    }
    let second = world.commit("master", "f", "two\n");
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("built {first}\nbuilt {second}\n"));
    assert_eq!(world.text(&format!("branch/built-of-{second}/ro/log")), "TWO\n");
    assert_eq!(
        world.git(&["log", "-1", "--format=%P %s", &format!("built-of-{second}")]).trim(),
        format!("{second} PASSED")
    );
}
