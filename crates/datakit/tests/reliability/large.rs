//! A directory of very many files: listed, walked and changed in bounded memory.

use std::io::Write;
use std::process::Stdio;

use super::world::{Mounted, Server, World, fsck, git, git_command, has_fuse, rounds};

/// What the server may take for each file, in bytes, on top of 64 MiB: the tree as git has it, parsed, and listed.
const BYTES_PER_FILE: usize = 600;

fn import(world: &World, files: usize) {
    let mut child =
        git_command(&world.repo, &["fast-import", "--quiet"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = std::io::BufWriter::new(child.stdin.take().unwrap());
    write!(stdin, "blob\nmark :1\ndata 1\nx\n").unwrap();
    write!(stdin, "commit refs/heads/main\ncommitter a <a@b> 1 +0000\ndata 1\nx\n").unwrap();
    for n in 0..files {
        writeln!(stdin, "M 100644 :1 d/{n:07}").unwrap();
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_directory_of_very_many_files_is_listed_walked_and_changed() {
    let files = rounds(30_000, 1_000_000);
    let world = World::new();
    import(&world, files);
    let folder = world.path("mount");
    std::fs::create_dir(&folder).unwrap();
    let mount = folder.display().to_string();
    let with_fuse = has_fuse();
    let arguments: Vec<&str> = if with_fuse { vec!["--fuse", &mount] } else { Vec::new() };
    let server = Server::start(&world, "socket", &arguments);
    let datakit = server.connect();
    let main = datakit.branch("main").unwrap();
    let mut names: Vec<String> = main.tree().list("d").unwrap().into_iter().map(|entry| entry.name).collect();
    names.sort();
    let expected = |n: usize| format!("{n:07}");
    assert_eq!(names.len(), files);
    assert!(names.iter().enumerate().all(|(n, name)| *name == expected(n)), "names are lost or made up");
    assert_eq!(main.tree().read(&format!("d/{}", expected(files / 2))).unwrap(), b"x");
    let middle = expected(files / 2);
    let commit = main.update(|t| t.write(&format!("d/{middle}"), b"changed")).unwrap();
    main.update(|t| t.write("d/new", b"new")).unwrap();
    assert_eq!(main.tree().list("d").unwrap().len(), files + 1);
    assert_eq!(
        git(&world.repo, &["diff", "--name-only", &format!("{commit}~1"), "main"]),
        format!("d/{middle}\nd/new")
    );
    if with_fuse {
        let mounted = Mounted::wait(folder);
        let directory = mounted.0.join("branch/main/ro/d");
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), files + 1);
        assert_eq!(std::fs::read(directory.join(&middle)).unwrap(), b"changed");
    }
    let (.., resident) = server.usage();
    println!("{files} files: {} MiB", resident >> 10);
    assert!(resident < (64 << 10) + files * BYTES_PER_FILE / 1024, "{resident} KiB");
    drop(server);
    fsck(&world.repo);
}
