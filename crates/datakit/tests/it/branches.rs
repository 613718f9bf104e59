//! `branch/`, `snapshots/`, `trees/`, `commits/`, `debug/`.

use p9p::Errno;

use crate::doors::through_all;

#[test]
fn the_root_has_what_datakits_had() {
    through_all(|world| {
        let all = ["branch", "commits", "debug", "remotes", "snapshots", "trees"];
        assert_eq!(world.door.list("").unwrap(), all, "{}", world.name);
        assert_eq!(world.door.read("nothing"), Err(Errno::ENOENT.0));
        assert_eq!(world.door.make_directory("new"), Err(Errno::EROFS.0), "{}", world.name);
    });
}

#[test]
fn a_branch_is_named_filled_renamed_and_removed() {
    through_all(|world| {
        world.door.make_directory("branch/one").unwrap();
        assert_eq!(world.text("branch/one/head"), "\n");
        assert_eq!(world.door.list("branch/one/ro").unwrap(), [""; 0]);
        assert_eq!(world.git(&["for-each-ref"]), "");
        let head = world.commit("one", "f", "text\n");
        assert_eq!(world.git(&["rev-parse", "refs/heads/one"]).trim(), head);
        assert_eq!(world.text("branch/one/ro/f"), "text\n");
        world.door.rename("branch/one", "branch/two").unwrap();
        assert_eq!(world.door.list("branch").unwrap(), ["two"]);
        assert_eq!(world.text("branch/two/head"), format!("{head}\n"));
        world.commit("one", "f", "other\n");
        assert_eq!(world.door.rename("branch/one", "branch/two"), Err(Errno::EEXIST.0), "{}", world.name);
        world.door.remove("branch/two", true).unwrap();
        assert_eq!(world.door.list("branch").unwrap(), ["one"]);
        assert_eq!(world.door.write("branch/file", b""), Err(Errno::EPERM.0), "{}", world.name);
    });
}

#[test]
fn a_branch_with_a_slash_is_escaped() {
    through_all(|world| {
        let head = world.commit("feature%2Fx", "f", "text\n");
        assert_eq!(world.git(&["rev-parse", "refs/heads/feature/x"]).trim(), head);
        assert_eq!(world.door.list("branch").unwrap(), ["feature%2Fx"]);
    });
}

#[test]
fn the_live_tree_is_read_only_and_follows_the_head() {
    through_all(|world| {
        world.commit("b", "f", "first\n");
        assert_eq!(world.text("branch/b/ro/f"), "first\n");
        assert_eq!(world.door.write("branch/b/ro/f", b"x"), Err(Errno::EROFS.0), "{}", world.name);
        assert_eq!(world.door.write("branch/b/ro/g", b"x"), Err(Errno::EROFS.0));
        assert_eq!(world.door.make_directory("branch/b/ro/d"), Err(Errno::EROFS.0));
        assert_eq!(world.door.remove("branch/b/ro/f", false), Err(Errno::EROFS.0));
        world.commit("b", "f", "second\n");
        assert_eq!(world.text("branch/b/ro/f"), "second\n", "{}", world.name);
        world.commit("b", "g", "third\n");
        assert_eq!(world.door.list("branch/b/ro").unwrap(), ["f", "g"], "{}", world.name);
    });
}

#[test]
fn snapshots_trees_and_commits_are_found_by_their_ids() {
    through_all(|world| {
        let first = world.commit("b", "f", "first\n");
        let second = world.commit("b", "f", "second\n");
        let snapshot = format!("snapshots/{first}");
        assert_eq!(world.text(&format!("{snapshot}/ro/f")), "first\n");
        assert_eq!(world.text(&format!("{snapshot}/hash")), first);
        assert_eq!(world.text(&format!("{snapshot}/msg")), "(no commit message)\n");
        assert_eq!(world.text(&format!("snapshots/{second}/parents")), format!("{first}\n"));
        assert_eq!(world.text(&format!("snapshots/{second}/diff/{first}")), "* f\n");
        assert_eq!(world.text(&format!("branch/b/diff/{first}")), "* f\n");
        assert_eq!(world.door.list("snapshots").unwrap(), [""; 0]);
        let tree = world.git(&["rev-parse", &format!("{first}^{{tree}}")]);
        let blob = world.git(&["rev-parse", &format!("{first}:f")]);
        assert_eq!(world.text(&format!("trees/D-{}/f", tree.trim())), "first\n");
        assert_eq!(world.text(&format!("trees/F-{}", blob.trim())), "first\n");
        assert_eq!(world.door.stat(&format!("trees/X-{}", blob.trim())).unwrap().kind, 'X');
        assert!(world.text(&format!("commits/{second}")).contains(&format!("\"parents\":[\"{first}\"]")));
        // A walk of 9P that stops on the way tells that it did, and not why.
        let nonsense = world.door.list("snapshots/nonsense").unwrap_err();
        assert!([Errno::EINVAL.0, Errno::ENOENT.0].contains(&nonsense), "{}: {nonsense}", world.name);
        assert_eq!(world.door.list(&format!("snapshots/{}", "0".repeat(40))), Err(Errno::ENOENT.0));
    });
}

#[test]
fn fast_forward_moves_forward_only() {
    through_all(|world| {
        let first = world.commit("a", "f", "first\n");
        let second = world.commit("a", "f", "second\n");
        world.door.make_directory("branch/b").unwrap();
        world.door.write("branch/b/fast-forward", first.as_bytes()).unwrap();
        assert_eq!(world.text("branch/b/head").trim(), first);
        world.door.write("branch/b/fast-forward", format!("{second}\n").as_bytes()).unwrap();
        world.door.write("branch/b/fast-forward", second.as_bytes()).unwrap();
        assert_eq!(
            world.door.write("branch/b/fast-forward", first.as_bytes()),
            Err(Errno::EBUSY.0),
            "{}",
            world.name
        );
        assert_eq!(world.door.write("branch/b/fast-forward", b"x"), Err(Errno::EINVAL.0));
        assert_eq!(
            world.door.write("branch/b/fast-forward", "0".repeat(40).as_bytes()),
            Err(Errno::ENOENT.0)
        );
        assert_eq!(world.text("branch/b/head").trim(), second);
    });
}

#[test]
fn log_levels_change_at_run_time() {
    through_all(|world| {
        assert_eq!(world.door.list("debug/src").unwrap(), ["remote", "server", "store"]);
        world.door.write("debug/src/store/level", b"debug\n").unwrap();
        assert_eq!(world.text("debug/src/store/level"), "debug\n");
        assert_eq!(world.door.write("debug/src/store/level", b"loud"), Err(Errno::EINVAL.0));
    });
}
