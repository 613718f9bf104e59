//! Real programs at work in a mount: tar, git, mmap.

use std::fs;
use std::path::Path;
use std::process::Command;

use p9p_fuse::MountOptions;

use crate::{Mounted, has};

fn run(directory: &Path, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .env("HOME", directory)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_AUTHOR_NAME", "a")
        .env("GIT_AUTHOR_EMAIL", "a@b")
        .env("GIT_COMMITTER_NAME", "a")
        .env("GIT_COMMITTER_EMAIL", "a@b")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn tar_brings_a_tree_in_and_out() {
    if !has("tar") {
        return;
    }
    for writeback in [false, true] {
        let Some(mounted) = Mounted::hostdir(MountOptions { writeback, ..MountOptions::default() }) else {
            return;
        };
        let source = tempfile::tempdir().unwrap();
        for number in 0..300 {
            let directory = source.path().join(format!("d{}", number % 17));
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(format!("f{number}")), vec![b'x'; number * 37]).unwrap();
        }
        std::os::unix::fs::symlink("d1/f1", source.path().join("link")).unwrap();
        fs::hard_link(source.path().join("d1/f1"), source.path().join("hard")).unwrap();
        let archive = source.path().with_extension("tar");
        run(source.path(), "tar", &["cf", archive.to_str().unwrap(), "."]);
        run(mounted.path(), "tar", &["xf", archive.to_str().unwrap()]);
        run(mounted.path(), "diff", &["-r", source.path().to_str().unwrap(), "."]);
        let back = tempfile::tempdir().unwrap();
        run(mounted.path(), "tar", &["cf", archive.to_str().unwrap(), "."]);
        run(back.path(), "tar", &["xf", archive.to_str().unwrap()]);
        run(back.path(), "diff", &["-r", source.path().to_str().unwrap(), "."]);
        fs::remove_file(archive).unwrap();
    }
}

#[test]
fn git_works_in_a_mount() {
    if !has("git") {
        return;
    }
    let Some(mounted) = Mounted::hostdir(MountOptions::default()) else { return };
    let repository = mounted.path().join("repository");
    fs::create_dir(&repository).unwrap();
    run(&repository, "git", &["init", "-q", "-b", "main"]);
    for number in 0..50 {
        fs::write(repository.join(format!("f{number}")), format!("{number}\n")).unwrap();
    }
    run(&repository, "git", &["add", "."]);
    run(&repository, "git", &["commit", "-qm", "first"]);
    run(&repository, "git", &["mv", "f1", "g1"]);
    run(&repository, "git", &["commit", "-qm", "second"]);
    run(mounted.path(), "git", &["clone", "-q", "repository", "clone"]);
    run(&mounted.path().join("clone"), "git", &["gc", "-q"]);
    run(&mounted.path().join("clone"), "git", &["fsck", "--full", "--strict"]);
    assert_eq!(run(&mounted.path().join("clone"), "git", &["status", "--porcelain"]), "");
    assert!(mounted.host.path().join("clone/g1").exists());
}

#[test]
fn a_file_is_mapped_into_memory_and_written_through_it() {
    let Some(mounted) = Mounted::hostdir(MountOptions::default()) else { return };
    fs::write(mounted.path().join("f"), vec![b'.'; 8192]).unwrap();
    let script = "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\nm[4000:4200]=b'!'*200\nm.flush()\nm.close()";
    let Ok(status) = Command::new("python3").args(["-c", script]).arg(mounted.path().join("f")).status()
    else {
        eprintln!("SKIP: python3 is not installed");
        return;
    };
    assert!(status.success());
    let bytes = fs::read(mounted.host.path().join("f")).unwrap();
    assert_eq!(bytes.iter().filter(|byte| **byte == b'!').count(), 200);
}
