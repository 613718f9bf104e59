//! Doors that want a password: git's credential helpers, its program for passwords, and certificates.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use datakit_git::remote::{FetchError, Outcome, PushError};

use super::servers::{LOGIN, Server};
use super::world::{World, commit, fsck, git, has_git, head, push_one, quiet, remote, try_head, update};

/// A program in the world's folder.
fn program(world: &World, name: &str, text: &str) -> PathBuf {
    let path = world.path(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A credential helper that notes what it is told in a file, and answers with this password.
fn helper(world: &World, name: &str, password: &str) -> (String, PathBuf) {
    let noted = world.path(&format!("{name}.noted"));
    let text = format!(
        "#!/bin/sh\n(echo \"= $1\"; cat) >>{0}\n[ $1 = get ] || exit 0\necho username={1}\necho 'password={2}'\n",
        noted.display(),
        LOGIN.0,
        password,
    );
    (program(world, name, &text).display().to_string(), noted)
}

fn noted(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn a_credential_helper_opens_the_door_and_is_told_how_it_went() {
    let world = World::new();
    let Some(server) = Server::secure(&world).filter(|_| has_git()) else { return };
    let work = world.work("work", 2, &[]);
    let bare = world.bare("bare", &[]);
    let (helper, asked) = helper(&world, "helper", LOGIN.1);
    git(&work, &["config", "credential.helper", &helper]);
    let there = remote(&work, &server.url("private/bare", &work));
    let first = head(&work, "main");
    assert_eq!(push_one(&there, update("main", Some(first), false)).0, Outcome::Moved(None));
    assert_eq!(head(&bare, "main"), first);
    let told = noted(&asked);
    assert!(told.starts_with("= get\n") && told.contains("protocol=https\n"), "{told}");
    assert!(told.contains("host=localhost:"), "{told}");
    assert!(told.contains("= store\n") && told.contains(&format!("password={}\n", LOGIN.1)), "{told}");
    assert!(!told.contains("= erase"), "{told}");

    let other = world.path("other");
    git(world.folder.path(), &["clone", "-q", "bare", "other"]);
    let second = commit(&other, "d1/e/f1", "theirs");
    git(&other, &["push", "-q", "origin", "main"]);
    let fetched = there.fetch(Some("main"), &quiet()).unwrap();
    assert_eq!(fetched.branches[0].head, second);
    assert!(noted(&asked).matches("= get\n").count() >= 2);
    fsck(&bare);
    fsck(&work);
}

#[test]
fn a_wrong_password_is_an_error_and_is_forgotten() {
    let world = World::new();
    let Some(server) = Server::secure(&world).filter(|_| has_git()) else { return };
    let work = world.work("work", 1, &[]);
    let bare = world.bare("bare", &[]);
    let (helper, asked) = helper(&world, "helper", "wrong");
    git(&work, &["config", "credential.helper", &helper]);
    let there = remote(&work, &server.url("private/bare", &work));
    let failed = there.fetch(Some("main"), &quiet()).unwrap_err();
    assert!(matches!(failed, FetchError::Credentials { .. }), "{failed:?}");
    let update = update("main", Some(head(&work, "main")), false);
    let failed = there.push(vec![update], false, &quiet()).unwrap_err();
    assert!(matches!(failed, PushError::Credentials { .. }), "{failed:?}");
    assert!(!failed.to_string().contains("wrong"), "{failed}");
    assert_eq!(noted(&asked).matches("= erase\n").count(), 2, "{}", noted(&asked));
    assert!(!noted(&asked).contains("= store"), "{}", noted(&asked));
    assert_eq!(try_head(&bare, "main"), None);
}

#[test]
fn the_helper_of_the_host_is_asked_and_no_other() {
    let world = World::new();
    let Some(server) = Server::secure(&world).filter(|_| has_git()) else { return };
    let work = world.work("work", 1, &[]);
    world.bare("bare", &[]);
    let url = server.url("private/bare", &work);
    let host = url.split("/private").next().unwrap();
    let (right, _) = helper(&world, "right", LOGIN.1);
    let (other, asked) = helper(&world, "other", "wrong");
    git(&work, &["config", "credential.https://example.com.helper", &other]);
    git(&work, &["config", &format!("credential.{host}.helper"), &right]);
    let there = remote(&work, &url);
    push_one(&there, update("main", Some(head(&work, "main")), false));
    assert_eq!(noted(&asked), "");
}

#[test]
fn gits_program_for_passwords_is_asked_when_no_helper_knows() {
    let world = World::new();
    let Some(server) = Server::secure(&world).filter(|_| has_git()) else { return };
    let work = world.work("work", 1, &[]);
    let bare = world.bare("bare", &[]);
    let text = format!(
        "#!/bin/sh\necho \"$1\" >>{}\ncase $1 in Username*) echo {};; *) echo '{}';; esac\n",
        world.path("prompts").display(),
        LOGIN.0,
        LOGIN.1
    );
    let askpass = program(&world, "askpass", &text);
    git(&work, &["config", "core.askPass", &askpass.display().to_string()]);
    let there = remote(&work, &server.url("private/bare", &work));
    push_one(&there, update("main", Some(head(&work, "main")), false));
    assert_eq!(head(&bare, "main"), head(&work, "main"));
    let prompts = noted(&world.path("prompts"));
    assert!(prompts.contains("Username for") && prompts.contains("Password for"), "{prompts}");
}

#[test]
fn no_password_goes_over_plain_http() {
    if !has_git() {
        return;
    }
    let world = World::new();
    let server = Server::web(world.folder.path());
    let work = world.work("work", 1, &[]);
    let bare = world.bare("bare", &[]);
    let (helper, _) = helper(&world, "helper", LOGIN.1);
    git(&work, &["config", "credential.helper", &helper]);
    let there = remote(&work, &server.url("private/bare", &work));
    assert!(there.fetch(Some("main"), &quiet()).is_err());
    assert!(there.push(vec![update("main", Some(head(&work, "main")), false)], false, &quiet()).is_err());
    assert_eq!((server.passwords().len(), try_head(&bare, "main")), (0, None));
}

#[test]
fn a_certificate_of_somebody_unknown_ends_it_unless_git_is_told_not_to_care() {
    let world = World::new();
    let Some(server) = Server::secure(&world).filter(|_| has_git()) else { return };
    let work = world.work("work", 1, &[]);
    let bare = world.bare("bare", &[]);
    let url = server.url("private/bare", &work);
    git(&work, &["config", "--unset", "http.sslCAInfo"]);
    let (helper, asked) = helper(&world, "helper", LOGIN.1);
    git(&work, &["config", "credential.helper", &helper]);
    let there = remote(&work, &url);
    let failed = there.fetch(Some("main"), &quiet()).unwrap_err();
    assert!(matches!(failed, FetchError::Connect { .. }), "{failed:?}");
    assert!(failed.to_string().to_lowercase().contains("certificate"), "{failed}");
    assert_eq!((noted(&asked), server.passwords().len()), (String::new(), 0));

    git(&work, &["config", "http.sslCAInfo", &world.path("absent.pem").display().to_string()]);
    let failed = there.fetch(Some("main"), &quiet()).unwrap_err();
    assert!(failed.to_string().contains("absent.pem"), "{failed}");

    git(&work, &["config", "--unset", "http.sslCAInfo"]);
    git(&work, &["config", "http.sslVerify", "false"]);
    push_one(&there, update("main", Some(head(&work, "main")), false));
    assert_eq!(head(&bare, "main"), head(&work, "main"));
}
