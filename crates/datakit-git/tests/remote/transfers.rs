//! What fetching and pushing do, over every transport.

use std::os::unix::fs::PermissionsExt;

use datakit_git::remote::{FetchError, Outcome, PushError};

use super::servers::Server;
use super::world::{World, commit, fsck, git, has_git, head, push_one, quiet, remote, try_head, update};

fn refused(outcome: &Outcome) -> &str {
    match outcome {
        Outcome::Refused(reason) => reason,
        outcome => panic!("not refused: {outcome:?}"),
    }
}

#[test]
fn a_branch_is_pushed_and_then_only_what_is_new() {
    let world = World::new();
    if !has_git() {
        return;
    }
    let work = world.work("work", 5, &[]);
    for server in Server::all(&world) {
        let name = server.name();
        let bare = world.bare(name, &[]);
        let remote = remote(&work, &server.url(name, &work));
        let first = head(&work, "main");
        let (outcome, objects) = push_one(&remote, update("main", Some(first), false));
        assert_eq!(outcome, Outcome::Moved(None), "{name}");
        let all: u64 = git(&work, &["rev-list", "--objects", "--count", "main"]).parse().unwrap();
        assert_eq!(objects, all, "{name}");
        assert_eq!(head(&bare, "main"), first, "{name}");
        fsck(&bare);

        let second = commit(&work, "d2/e/f2", name);
        // The commit, three trees and a blob.
        assert_eq!(
            push_one(&remote, update("main", Some(second), false)),
            (Outcome::Moved(Some(first)), 5),
            "{name}"
        );
        assert_eq!(push_one(&remote, update("main", Some(second), false)).0, Outcome::UpToDate, "{name}");
        // Another name for what is there needs no object.
        assert_eq!(
            push_one(&remote, update("x/y", Some(second), false)),
            (Outcome::Moved(None), 0),
            "{name}"
        );
        assert_eq!(push_one(&remote, update("x/y", None, false)).0, Outcome::Moved(Some(second)), "{name}");
        assert_eq!((head(&bare, "main"), try_head(&bare, "x/y")), (second, None), "{name}");
        fsck(&bare);
    }
}

#[test]
fn commits_are_lost_only_by_force() {
    let world = World::new();
    if !has_git() {
        return;
    }
    let work = world.work("work", 2, &[]);
    for server in Server::all(&world) {
        let name = server.name();
        let bare = world.bare(name, &[]);
        let remote = remote(&work, &server.url(name, &work));
        let (old, new) = (head(&work, "main~1"), head(&work, "main"));
        push_one(&remote, update("main", Some(new), false));
        let (outcome, _) = push_one(&remote, update("main", Some(old), false));
        assert!(refused(&outcome).contains("not-fast-forward"), "{name}: {outcome:?}");
        assert_eq!(head(&bare, "main"), new, "{name}");
        assert_eq!(push_one(&remote, update("main", Some(old), true)).0, Outcome::Moved(Some(new)), "{name}");
        assert_eq!(head(&bare, "main"), old, "{name}");

        // Somebody else's commit, which is not here at all.
        let other = world.path(&format!("other-{name}"));
        git(world.folder.path(), &["clone", "-q", &bare.display().to_string(), &other.display().to_string()]);
        let theirs = commit(&other, "d1/e/f1", "theirs");
        git(&other, &["push", "-q", "origin", "main"]);
        let (outcome, _) = push_one(&remote, update("main", Some(new), false));
        assert!(refused(&outcome).contains("fetch first"), "{name}: {outcome:?}");
        assert_eq!(head(&bare, "main"), theirs, "{name}");
    }
}

#[test]
fn an_atomic_push_moves_all_or_none() {
    let world = World::new();
    if !has_git() {
        return;
    }
    let work = world.work("work", 2, &[]);
    for server in Server::all(&world) {
        let name = server.name();
        let bare = world.bare(name, &[]);
        let remote = remote(&work, &server.url(name, &work));
        let (old, new) = (head(&work, "main~1"), head(&work, "main"));
        push_one(&remote, update("main", Some(new), false));
        let both = vec![update("main", Some(old), false), update("side", Some(new), false)];
        let pushed = remote.push(both.clone(), true, &quiet()).unwrap();
        assert!(
            pushed.refs.iter().all(|(_, outcome)| matches!(outcome, Outcome::Refused(_))),
            "{name}: {pushed:?}"
        );
        assert_eq!(try_head(&bare, "side"), None, "{name}");
        let pushed = remote.push(both, false, &quiet()).unwrap();
        assert_eq!(pushed.refs[1].1, Outcome::Moved(None), "{name}");
        assert!(!pushed.is_ok(), "{name}");

        // The other side's own refusal takes the rest along, too.
        let hook = bare.join("hooks/update");
        std::fs::write(&hook, "#!/bin/sh\ncase $1 in *closed) echo closed for today >&2; exit 1;; esac\n")
            .unwrap();
        std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
        let both = vec![update("closed", Some(new), false), update("open", Some(new), false)];
        let pushed = remote.push(both.clone(), true, &quiet()).unwrap();
        assert_eq!(try_head(&bare, "open"), None, "{name}");
        assert!(!pushed.is_ok(), "{name}: {pushed:?}");
        let pushed = remote.push(both, false, &quiet()).unwrap();
        assert!(refused(&pushed.refs[0].1).contains("hook declined"), "{name}: {pushed:?}");
        assert!(pushed.said.contains("closed for today"), "{name}: {pushed:?}");
        assert_eq!(try_head(&bare, "open"), Some(new), "{name}");
        fsck(&bare);
    }
}

#[test]
fn a_branch_is_fetched_and_moves_nothing_of_ours() {
    let world = World::new();
    if !has_git() {
        return;
    }
    let source = world.work("source", 4, &[]);
    git(&source, &["branch", "side", "main~2"]);
    for server in Server::all(&world) {
        let name = server.name();
        let work = world.path(&format!("into-{name}"));
        git(world.folder.path(), &["init", "-q", &work.display().to_string()]);
        let url = server.url("source/.git", &work);
        let remote = remote(&work, &url);
        let transfer = quiet();
        let fetched = remote.fetch(Some("side"), &transfer).unwrap();
        assert_eq!(fetched.branches.len(), 1, "{name}");
        assert_eq!(fetched.branches[0].head, head(&source, "side"), "{name}");
        assert_eq!(transfer.status().objects, fetched.objects, "{name}");
        assert!(transfer.status().bytes > 0, "{name}: {:?}", transfer.status());
        assert_eq!(head(&work, "refs/remotes/r/side"), head(&source, "side"), "{name}");
        assert_eq!(try_head(&work, "side"), None, "{name}");
        fsck(&work);

        let all = remote.fetch(None, &quiet()).unwrap();
        let names: Vec<_> = all.branches.iter().map(|found| found.branch.as_str()).collect();
        assert_eq!(names, ["main", "side"], "{name}");
        assert_eq!(remote.fetch(None, &quiet()).unwrap().objects, 0, "{name}");
        // What was fetched survives collection, and no pack is kept by force.
        git(&work, &["gc", "-q", "--prune=now"]);
        assert_eq!(head(&work, "refs/remotes/r/main"), head(&source, "main"), "{name}");
        let packs = std::fs::read_dir(work.join(".git/objects/pack")).unwrap();
        assert!(
            packs.flatten().all(|file| file.path().extension().is_none_or(|end| end != "keep")),
            "{name}"
        );
        fsck(&work);
    }
}

#[test]
fn what_is_not_there_is_said() {
    let world = World::new();
    if !has_git() {
        return;
    }
    let work = world.work("work", 1, &[]);
    world.bare("empty", &[]);
    for server in Server::all(&world) {
        let name = server.name();
        let there = remote(&work, &server.url("work/.git", &work));
        let failed = there.fetch(Some("nowhere"), &quiet()).unwrap_err();
        assert!(
            matches!(&failed, FetchError::NoBranch { branch, .. } if branch == "nowhere"),
            "{name}: {failed}"
        );
        let empty = remote(&work, &server.url("empty", &work));
        let failed = empty.fetch(None, &quiet()).unwrap_err();
        assert!(matches!(failed, FetchError::Empty { .. }), "{name}: {failed}");
        let absent = remote(&work, &server.url("absent", &work));
        let failed = absent.fetch(Some("main"), &quiet()).unwrap_err();
        assert!(matches!(failed, FetchError::Connect { .. }), "{name}: {failed}");
        let failed =
            absent.push(vec![update("main", Some(head(&work, "main")), false)], false, &quiet()).unwrap_err();
        assert!(matches!(failed, PushError::Connect { .. }), "{name}: {failed}");
    }
    let strange = "0123456789012345678901234567890123456789".parse().unwrap();
    let there = remote(&work, &world.path("empty").display().to_string());
    let failed = there.push(vec![update("main", Some(strange), false)], false, &quiet()).unwrap_err();
    assert!(matches!(failed, PushError::NoObject { id } if id == strange), "{failed}");
    let failed = there.push(vec![update("a..b", None, false)], false, &quiet()).unwrap_err();
    assert!(matches!(failed, PushError::RefName { .. }), "{failed}");
}

#[test]
fn packed_history_with_deltas_arrives_whole() {
    let world = World::new();
    if !has_git() {
        return;
    }
    let work = world.work("work", 60, &[]);
    git(&work, &["tag", "-a", "-m", "tagged", "v1"]);
    git(&work, &["gc", "-q", "--aggressive"]);
    let last = commit(&work, "d3/e/f3", "loose");
    for server in Server::all(&world) {
        let name = server.name();
        let bare = world.bare(name, &[]);
        let remote = remote(&work, &server.url(name, &work));
        let middle = head(&work, "main~30");
        push_one(&remote, update("main", Some(middle), false));
        let tag = datakit_git::remote::Update {
            reference: "refs/tags/v1".to_owned(),
            new: Some(head(&work, "v1")),
            force: false,
        };
        let pushed = remote.push(vec![update("main", Some(last), false), tag], true, &quiet()).unwrap();
        assert!(pushed.is_ok(), "{name}: {pushed:?}");
        assert_eq!(head(&bare, "main"), last, "{name}");
        assert_eq!(head(&bare, "v1^{commit}"), head(&work, "main~1"), "{name}");
        fsck(&bare);
    }
}

#[test]
fn merges_and_renames_arrive_whole() {
    let world = World::new();
    if !has_git() {
        return;
    }
    let work = world.work("work", 3, &[]);
    git(&work, &["checkout", "-q", "-b", "side", "main~1"]);
    commit(&work, "d2/e/new", "side");
    git(&work, &["checkout", "-q", "main"]);
    git(&work, &["merge", "-q", "--no-ff", "-m", "merge", "side"]);
    git(&work, &["mv", "d1/e", "d2/moved"]);
    let last = commit(&work, "d2/moved/f1", "after");
    let bare = world.bare("bare", &[]);
    let remote = remote(&work, &bare.display().to_string());
    for reference in ["main~3", "main~1", "main"] {
        push_one(&remote, update("main", Some(head(&work, reference)), false));
        fsck(&bare);
    }
    assert_eq!(head(&bare, "main"), last);
}

#[test]
fn sha256_repositories_push_and_fetch() {
    let world = World::new();
    if !has_git() {
        return;
    }
    let kind = ["--object-format=sha256"];
    let work = world.work("work", 3, &kind);
    let bare = world.bare("bare", &kind);
    let there = remote(&work, &bare.display().to_string());
    push_one(&there, update("main", Some(head(&work, "main")), false));
    fsck(&bare);
    let last = commit(&bare.join("../work"), "d1/e/f1", "more");
    push_one(&there, update("main", Some(last), false));
    git(world.folder.path(), &["init", "-q", "--object-format=sha256", "into"]);
    let fetched =
        remote(&world.path("into"), &bare.display().to_string()).fetch(Some("main"), &quiet()).unwrap();
    assert_eq!(fetched.branches[0].head, last);
    fsck(&world.path("into"));

    let other = world.bare("sha1", &[]);
    let failed = remote(&work, &other.display().to_string())
        .push(vec![update("main", Some(last), false)], false, &quiet())
        .unwrap_err();
    assert!(matches!(failed, PushError::HashKind { .. }), "{failed}");
}
