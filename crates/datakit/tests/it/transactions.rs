//! Transactions: the working tree, commits, merges, conflicts, leases.

use p9p::Errno;
use p9p::message::Dialect;

use crate::doors::{World, by_9p, connect, through_all, visible};

fn begin(world: &World, branch: &str) -> String {
    let _ = world.door.make_directory(&format!("branch/{branch}"));
    let transaction = format!("branch/{branch}/transactions/t");
    world.door.make_directory(&transaction).unwrap();
    transaction
}

#[test]
fn the_working_tree_is_a_file_system() {
    through_all(|world| {
        let rw = format!("{}/rw", begin(world, "b"));
        let at = |name: &str| format!("{rw}/{name}");
        let door = &world.door;
        door.make_directory(&at("d")).unwrap();
        door.write(&at("d/f"), b"0123456789").unwrap();
        door.append(&at("d/f"), b"abc").unwrap();
        door.truncate(&at("d/f"), 11).unwrap();
        assert_eq!(door.read(&at("d/f")).unwrap(), b"0123456789a");
        door.make_executable(&at("d/f")).unwrap();
        if world.has_links() {
            door.symlink(&at("link"), "d/f").unwrap();
            assert_eq!(door.read_link(&at("link")).unwrap(), "d/f");
            assert_eq!(door.stat(&at("link")).unwrap().kind, 'L');
        } else {
            door.write(&at("link"), b"d/f").unwrap();
        }
        let before = door.stat(&at("d/f")).unwrap();
        assert_eq!((before.kind, before.size), ('X', 11));
        door.rename(&at("d/f"), &at("d/g")).unwrap();
        assert_eq!(door.stat(&at("d/g")).unwrap().number, before.number, "{}", world.name);
        assert_eq!(door.make_directory(&at("d")), Err(Errno::EEXIST.0));
        assert_eq!(door.remove(&at("d/nothing"), false), Err(Errno::ENOENT.0));
        assert_eq!(door.list(&rw).unwrap(), ["d", "link"]);
        door.make_directory(&at("empty")).unwrap();
        door.remove(&at("empty"), true).unwrap();
        assert_eq!(door.stat(&at("empty")), Err(Errno::ENOENT.0), "an empty directory stays away");
        door.write(&format!("{rw}/../msg"), b"A message\n").unwrap();
        door.write(&format!("{rw}/../ctl"), b"commit\n").unwrap();
        let mode = if world.has_links() { "120000" } else { "100644" };
        assert_eq!(
            world.git(&["ls-tree", "-r", "--format=%(objectmode) %(path)", "b"]),
            format!("100755 d/g\n{mode} link\n")
        );
        assert_eq!(world.git(&["log", "-1", "--format=%B", "b"]).trim(), "A message");
        world.git(&["fsck", "--full", "--strict"]);
    });
}

/// As a shell's `> ctl` does it in a kernel's client.
#[test]
fn a_command_file_is_emptied_and_nothing_else() {
    through_all(|world| {
        let transaction = begin(world, "b");
        world.door.write(&format!("{transaction}/rw/f"), b"x").unwrap();
        let ctl = format!("{transaction}/ctl");
        assert_eq!(world.door.truncate(&ctl, 0), Ok(()), "{}", world.name);
        assert_eq!(world.door.truncate(&ctl, 1), Err(Errno::EPERM.0), "{}", world.name);
        assert_eq!(world.door.make_executable(&ctl), Err(Errno::EPERM.0), "{}", world.name);
        world.door.write(&ctl, b"commit").unwrap();
        assert_eq!(world.text("branch/b/ro/f"), "x");
    });
}

#[test]
fn renames_across_directories_keep_the_file() {
    through_all(|world| {
        let rw = format!("{}/rw", begin(world, "b"));
        world.door.make_directory(&format!("{rw}/a")).unwrap();
        world.door.make_directory(&format!("{rw}/b")).unwrap();
        world.door.write(&format!("{rw}/a/f"), b"text").unwrap();
        if !world.renames_across() {
            let refused = world.door.rename(&format!("{rw}/a/f"), &format!("{rw}/b/g"));
            assert_eq!(refused, Err(Errno::EXDEV.0), "{}", world.name);
            assert_eq!(world.door.list(&format!("{rw}/a")).unwrap(), ["f"], "{}", world.name);
            return;
        }
        let number = world.door.stat(&format!("{rw}/a/f")).unwrap().number;
        world.door.rename(&format!("{rw}/a/f"), &format!("{rw}/b/g")).unwrap();
        assert_eq!(world.door.stat(&format!("{rw}/b/g")).unwrap().number, number);
        assert_eq!(world.door.list(&format!("{rw}/a")).unwrap(), [""; 0]);
        world.door.remove(&format!("{rw}/a"), true).unwrap();
        assert_eq!(world.door.remove(&format!("{rw}/b"), true), Err(Errno::ENOTEMPTY.0));
        world.door.rename(&format!("{rw}/b"), &format!("{rw}/c")).unwrap();
        assert_eq!(world.text(&format!("{rw}/c/g")), "text");
    });
}

#[test]
fn hostile_names_are_errors() {
    through_all(|world| {
        let rw = format!("{}/rw", begin(world, "b"));
        assert_eq!(world.door.make_directory(&format!("{rw}/.git")), Err(Errno::EPERM.0), "{}", world.name);
        let longest = format!("{rw}/{}", "n".repeat(255));
        world.door.write(&longest, b"x").unwrap();
        assert_eq!(world.text(&longest), "x");
        assert_eq!(
            world.door.make_directory(&format!("{rw}/{}", "n".repeat(256))),
            Err(Errno::ENAMETOOLONG.0)
        );
        if world.server.is_some() {
            // Names that no system call can say, but a message can.
            for name in ["a\0b", "..", ".", ""] {
                let made = world.door.make_directory(&format!("{rw}/{name}"));
                assert!(made.is_err(), "{}: {name:?}", world.name);
            }
            assert_eq!(world.door.list(&rw).unwrap(), ["n".repeat(255)], "{}", world.name);
        }
        let mut deep = rw.clone();
        for _ in 0..100 {
            deep.push_str("/deep");
            world.door.make_directory(&deep).unwrap();
        }
        world.door.write(&format!("{deep}/f"), b"deep").unwrap();
        world.door.write(&format!("{rw}/../ctl"), b"commit").unwrap();
        assert_eq!(world.text(&format!("branch/b/ro{}/f", &deep[rw.len()..])), "deep");
    });
}

#[test]
fn transactions_end_by_their_ctl_alone() {
    through_all(|world| {
        let transaction = begin(world, "b");
        assert_eq!(world.door.make_directory(&transaction), Err(Errno::EEXIST.0));
        assert_eq!(world.door.remove(&transaction, true), Err(Errno::EPERM.0), "{}", world.name);
        assert_eq!(world.door.write(&format!("{transaction}/ctl"), b"dance"), Err(Errno::EINVAL.0));
        assert_eq!(world.text(&format!("{transaction}/ctl")), "Unknown command \"dance\"\n");
        world.door.write(&format!("{transaction}/ctl"), b"close").unwrap();
        assert_eq!(world.door.list("branch/b/transactions").unwrap(), [""; 0]);
        assert_eq!(world.text("branch/b/head"), "\n");
    });
}

#[test]
fn a_conflict_refuses_the_commit_and_can_be_resolved() {
    through_all(|world| {
        let base = world.commit("b", "f", "base\n");
        let transaction = begin(world, "b");
        let at = |name: &str| format!("{transaction}/{name}");
        assert_eq!(world.text(&at("parents")), format!("{base}\n"));
        world.door.write(&at("rw/f"), b"mine\n").unwrap();
        let theirs = world.commit("b", "f", "theirs\n");
        assert_eq!(world.door.write(&at("ctl"), b"commit"), Err(Errno::EBUSY.0), "{}", world.name);
        assert!(world.text(&at("ctl")).starts_with("Merge conflict: "));
        world.door.write(&at("merge"), theirs.as_bytes()).unwrap();
        assert_eq!(world.text(&at("conflicts")), "f\n");
        assert_eq!(world.text(&at("ours/f")), "mine\n");
        assert_eq!(world.text(&at("theirs/f")), "theirs\n");
        assert_eq!(world.text(&at("base/f")), "base\n");
        assert!(world.text(&at("rw/f")).starts_with("** Conflict **\n"), "{}", world.name);
        assert_eq!(world.door.write(&at("ctl"), b"commit"), Err(Errno::EBUSY.0));
        assert!(world.text(&at("ctl")).starts_with("conflicts file is not empty"));
        world.door.write(&at("rw/f"), b"both\n").unwrap();
        assert_eq!(world.text(&at("conflicts")), "");
        world.door.write(&at("ctl"), b"commit").unwrap();
        assert_eq!(world.text("branch/b/ro/f"), "both\n");
        assert_eq!(world.git(&["log", "-1", "--format=%P", "b"]).trim(), format!("{base} {theirs}"));
    });
}

#[test]
fn disjoint_changes_are_merged_at_commit() {
    through_all(|world| {
        world.commit("b", "f", "f\n");
        let transaction = begin(world, "b");
        world.door.write(&format!("{transaction}/rw/g"), b"g\n").unwrap();
        world.commit("b", "h", "h\n");
        world.door.write(&format!("{transaction}/ctl"), b"commit").unwrap();
        assert_eq!(world.door.list("branch/b/ro").unwrap(), ["f", "g", "h"]);
    });
}

#[test]
fn text_is_merged_inside_files_where_asked() {
    through_all(|world| {
        let base: String = (0..20).map(|n| format!("{n}\n")).collect();
        world.commit("b", "f", &base);
        let transaction = begin(world, "b");
        world.door.write(&format!("{transaction}/rw/f"), base.replace("2\n", "two\n").as_bytes()).unwrap();
        world.commit("b", "f", &base.replace("17\n", "seventeen\n"));
        assert_eq!(world.door.write(&format!("{transaction}/merge-driver"), b"magic"), Err(Errno::EINVAL.0));
        world.door.write(&format!("{transaction}/merge-driver"), b"text\n").unwrap();
        world.door.write(&format!("{transaction}/ctl"), b"commit").unwrap();
        let merged = world.text("branch/b/ro/f");
        assert!(merged.contains("two\n") && merged.contains("seventeen\n"), "{}: {merged}", world.name);
    });
}

#[test]
fn transactions_are_private_and_leases_are_not() {
    for dialect in [Dialect::Linux, Dialect::Unix] {
        let world = by_9p(dialect, visible());
        let (_, at) = world.server.as_ref().unwrap();
        let other = connect(at, dialect);
        world.commit("b", "f", "f\n");
        begin(&world, "b");
        assert_eq!(other.list("branch/b/transactions").unwrap(), [""; 0]);
        world.door.make_directory("branch/b/leases/shared").unwrap();
        world.door.write("branch/b/leases/shared/rw/g", b"one\n").unwrap();
        assert_eq!(other.read("branch/b/leases/shared/rw/g").unwrap(), b"one\n");
        drop(world.door);
        other.write("branch/b/leases/shared/rw/h", b"two\n").unwrap();
        other.write("branch/b/leases/shared/ctl", b"commit").unwrap();
        assert_eq!(other.list("branch/b/ro").unwrap(), ["f", "g", "h"]);
        assert_eq!(other.list("branch/b/leases").unwrap(), [""; 0]);
    }
}

#[test]
fn a_name_used_again_is_another_transaction_even_where_the_first_is_held() {
    through_all(|world| {
        for directory in ["transactions/t", "leases/t"] {
            let _ = world.door.make_directory("branch/b");
            let transaction = format!("branch/b/{directory}");
            world.door.make_directory(&transaction).unwrap();
            let held = world.hold(&transaction);
            let first = world.door.stat(&transaction).unwrap().number;
            world.door.write(&format!("{transaction}/rw/f"), b"one").unwrap();
            world.door.write(&format!("{transaction}/ctl"), b"commit").unwrap();
            assert_eq!(world.door.stat(&transaction), Err(Errno::ENOENT.0), "{}: {directory}", world.name);
            world.door.make_directory(&transaction).unwrap();
            let second = world.door.stat(&transaction).unwrap().number;
            assert_ne!(first, second, "{}: {directory}", world.name);
            let written = world.door.write(&format!("{transaction}/rw/f"), b"two");
            assert_eq!(written, Ok(()), "{}: {directory}", world.name);
            world.door.write(&format!("{transaction}/ctl"), b"commit").unwrap();
            assert_eq!(world.git(&["show", "b:f"]), "two", "{}: {directory}", world.name);
            drop(held);
        }
    });
}
