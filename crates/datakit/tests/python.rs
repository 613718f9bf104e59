//! The Python client's own tests, against a served repository.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, which say what they skip")]

mod world;

use std::path::Path;
use std::process::Command;

use world::{Server, World, fsck, has};

#[test]
fn the_python_client_passes_its_tests() {
    if !has("python3") {
        return;
    }
    let world = World::new();
    let server = Server::start(&world, "socket", &[]);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../clients/python");
    let output = Command::new("python3")
        .arg("test_datakit.py")
        .current_dir(folder)
        .env("DATAKIT", &server.url)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fsck(&world.repo);
}
