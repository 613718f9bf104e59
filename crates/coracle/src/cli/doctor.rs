//! `coracle doctor`: what this host offers, and what to do about what it lacks.

use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::print_line;
use crate::failure::Failure;

/// How long our own processor is measured.
const MEASURE: std::time::Duration = std::time::Duration::from_millis(50);

/// Free space that a guest image and its downloads want.
const DISK_BYTES_WANTED: u64 = 1 << 30;

/// Say what this host offers, and what to do about what it lacks.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    /// What.
    name: &'static str,
    /// Whether it is there and usable.
    ok: bool,
    /// What was found, with figures.
    found: String,
    /// What to do, if anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
    /// Speed in million instructions a second, of engines.
    #[serde(skip_serializing_if = "Option::is_none")]
    mips: Option<f64>,
}

impl Finding {
    fn good(name: &'static str, found: impl Into<String>) -> Finding {
        Finding { name, ok: true, found: found.into(), advice: None, mips: None }
    }

    fn bad(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { name, ok: false, found: found.into(), advice: Some(advice.into()), mips: None }
    }
}

/// Looks and prints. Exit code 0 when a machine can run here, 1 when it cannot.
pub fn perform(arguments: &Arguments) -> Result<u8, Failure> {
    let engines = [soft(), kvm()];
    let chosen = hyperkit::best_engine();
    let rest = [fuse(), tun(), mirror(), disk()];
    let can_run = engines[0].ok || engines[1].ok;
    if arguments.json {
        let findings: Vec<&Finding> = engines.iter().chain(&rest).collect();
        let report = serde_json::json!({ "can_run": can_run, "engine": chosen, "findings": findings });
        print_line(format_args!("{report:#}"))?;
    } else {
        for finding in engines.iter().chain(&rest) {
            let mark = if finding.ok { "ok " } else { "-- " };
            print_line(format_args!("{mark} {:<8} {}", finding.name, finding.found))?;
            if let Some(advice) = &finding.advice {
                print_line(format_args!("             {advice}"))?;
            }
        }
        print_line(format_args!("\n--engine auto takes {chosen}"))?;
    }
    Ok(u8::from(!can_run))
}

fn soft() -> Finding {
    match hyperkit::measure(hyperkit::EngineKind::Soft, MEASURE) {
        Ok(mips) => Finding {
            mips: Some(mips),
            ..Finding::good(
                "soft",
                format!("our processor in software: {mips:.0} million instructions a second"),
            )
        },
        Err(error) => Finding::bad(
            "soft",
            crate::failure::chain(&error),
            "report this, with the processor and system you have",
        ),
    }
}

fn kvm() -> Finding {
    match hyperkit_hv::kvm::speed() {
        Ok(speed) if speed.is_hardware() => Finding {
            mips: Some(speed.mips),
            ..Finding::good("kvm", format!("hardware: {:.0} million instructions a second", speed.mips))
        },
        Ok(speed) => Finding {
            mips: Some(speed.mips),
            ..Finding::bad(
                "kvm",
                format!("/dev/kvm only emulates here: {:.1} million instructions a second", speed.mips),
                "nothing to do: our own processor is faster and is used instead",
            )
        },
        Err(error) => Finding::bad(
            "kvm",
            crate::failure::chain(&error),
            "not needed; with it machines run at the hardware's speed",
        ),
    }
}

fn fuse() -> Finding {
    device(
        "fuse",
        "/dev/fuse",
        "not needed to run machines; load the module fuse to mount DataKit repositories",
    )
}

fn tun() -> Finding {
    device(
        "tun",
        "/dev/net/tun",
        "not needed to run machines; load the module tun to attach network namespaces",
    )
}

fn device(name: &'static str, path: &str, advice: &str) -> Finding {
    match std::fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Finding::good(name, format!("{path} can be used")),
        Err(error) => Finding::bad(name, format!("{path}: {error}"), advice),
    }
}

fn mirror() -> Finding {
    match guest_image::apt::sources::load(Path::new("/")) {
        Ok(sources) => {
            let suites: Vec<String> =
                sources.iter().map(|source| format!("{} {}", source.url, source.suite)).collect();
            Finding::good("mirror", suites.join(", "))
        }
        Err(error) => {
            Finding::bad("mirror", crate::failure::chain(&error), "name a Debian mirror with --mirror URL")
        }
    }
}

fn disk() -> Finding {
    let folder = crate::machine::cache_folder();
    let existing = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(existing) {
        Ok(stat) => {
            let free = stat.f_bavail * stat.f_frsize;
            let found = format!("{} MiB free for images in {}", free >> 20, folder.display());
            if free >= DISK_BYTES_WANTED {
                Finding::good("disk", found)
            } else {
                Finding::bad("disk", found, "free a gigabyte there, or set XDG_CACHE_HOME to a larger disk")
            }
        }
        Err(error) => Finding::bad(
            "disk",
            format!("{}: {error}", existing.display()),
            "set XDG_CACHE_HOME to a folder of yours",
        ),
    }
}
