//! Builds PID 1 of the guest as a static program, to be put into the initramfs.
//!
//! It is a program of its own with other compiler flags, so cargo is called once more, with a target folder of its
//! own: the outer build holds the lock of the outer one.

use std::path::Path;
use std::process::Command;

fn main() {
    // Asked for at run time: a target folder may have been copied from another tree.
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let manifest = Path::new(&manifest);
    let root = manifest.ancestors().nth(2).expect("the crate lies in crates/ of the workspace");
    for part in ["guest/init", "crates/guest-protocol", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", root.join(part).display());
    }
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    let target = Path::new(&out).join("guest");
    let mut cargo = Command::new(std::env::var_os("CARGO").expect("cargo sets CARGO"));
    cargo
        .current_dir(root)
        .args(["build", "--quiet", "--package", "guest-init", "--profile", "guest"])
        .args(["--target", "x86_64-unknown-linux-gnu", "--target-dir"])
        .arg(&target)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    let status = cargo.status().expect("cargo can be started");
    assert!(status.success(), "the guest's PID 1 does not build");
    let program = target.join("x86_64-unknown-linux-gnu/guest/guest-init");
    println!("cargo::rustc-env=GUEST_INIT={}", program.display());
}
