//! `coracle image`: build, list and remove guest images.

use clap::{Args, Subcommand};

use super::print_line;
use crate::failure::Failure;
use crate::machine::{self, ImageChoice};

/// Build, list and remove guest images.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the image that `run` uses, if it is not there yet.
    Build(Build),
    /// List what is cached.
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove images and downloads that the newest image does not need.
    Prune {
        /// Remove the newest image as well
        #[arg(long)]
        all: bool,
    },
}

#[derive(Debug, Args)]
struct Build {
    /// Debian packages to have in the guest besides busybox; can be given several times
    #[arg(long = "package", value_name = "NAME", value_delimiter = ',')]
    packages: Vec<String>,
    /// Take packages from this mirror instead of the host's apt sources
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Use nothing but what is already here
    #[arg(long)]
    offline: bool,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// Does what is asked.
pub fn perform(arguments: &Arguments) -> Result<u8, Failure> {
    match &arguments.command {
        Command::Build(build) => {
            let choice = ImageChoice {
                packages: build.packages.clone(),
                mirror: build.mirror.clone(),
                offline: build.offline,
            };
            let image = machine::image(&choice)?;
            if build.json {
                print_line(format_args!("{:#}", image_json(&image)))?;
            } else {
                print_line(format_args!("{} kernel {}", image.id, image.kernel_version))?;
            }
        }
        Command::List { json } => {
            let images = guest_image::list(&machine::cache_folder()).map_err(|error| Failure::of(&error))?;
            if *json {
                let list: Vec<serde_json::Value> = images.iter().map(cached_json).collect();
                print_line(format_args!("{:#}", serde_json::Value::from(list)))?;
            } else {
                for image in images {
                    print_line(format_args!(
                        "{:<20} {:>6} MiB  kernel {}  {}",
                        image.id,
                        image.bytes >> 20,
                        image.kernel_version,
                        image.packages.join(" ")
                    ))?;
                }
            }
        }
        Command::Prune { all } => {
            let keep = usize::from(!all);
            let freed =
                guest_image::prune(&machine::cache_folder(), keep).map_err(|error| Failure::of(&error))?;
            print_line(format_args!("{} MiB freed", freed >> 20))?;
        }
    }
    Ok(0)
}

fn image_json(image: &guest_image::GuestImage) -> serde_json::Value {
    serde_json::json!({
        "id": image.id,
        "kernel": image.kernel,
        "initramfs": image.initramfs,
        "rootfs": image.rootfs,
        "kernel_version": image.kernel_version,
        "packages": image.packages,
    })
}

fn cached_json(image: &guest_image::CachedImage) -> serde_json::Value {
    serde_json::json!({
        "id": image.id,
        "bytes": image.bytes,
        "kernel_version": image.kernel_version,
        "packages": image.packages,
    })
}
