//! The kernel of a package, taken apart: its ELF image and the modules that a guest may want.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::deb::{self, EntryKind};
use crate::error::{BuildError, IoContext, malformed};
use crate::modules::{Module, ModuleSet, name_of};
use crate::vmlinux;

/// Modules that PID 1 loads, by what for. The order within a group matters only to what we prefer.
pub const GROUPS: [(&str, &[&str]); 5] = [
    ("boot", &["virtio_mmio", "virtio_rng", "vmw_vsock_virtio_transport"]),
    ("net", &["virtio_net"]),
    ("share", &["9pnet_virtio", "9p"]),
    ("disk", &["virtio_blk"]),
    ("root", &["virtio_blk", "erofs", "overlay"]),
];

/// Modules that the kernel, or `modprobe` in the guest, may ask for later: those small enough for every guest.
pub const ON_DEMAND: [&str; 9] = [
    "virtio_blk",
    "overlay",
    "virtio_console",
    "9pnet_fd",
    "loop",
    "tun",
    "fuse",
    "virtiofs",
    "vsock_loopback",
];

/// As [`ON_DEMAND`], for guests with a root file system on a disk.
pub const ON_DEMAND_LARGE: [&str; 12] = [
    "ext4",
    "squashfs",
    "virtio_pci",
    "virtio_balloon",
    "bridge",
    "veth",
    "br_netfilter",
    "iptable_nat",
    "iptable_filter",
    "nf_tables",
    "nft_compat",
    "binfmt_misc",
];

/// Modules that these are known to need: asking for them at once saves reading the package twice.
const KNOWN_NEEDS: [&str; 31] = [
    "virtio",
    "virtio_ring",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "failover",
    "net_failover",
    "netfs",
    "fscache",
    "9pnet",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "crc32c_generic",
    "libcrc32c",
    "crc16",
    "mbcache",
    "jbd2",
    "cdrom",
    "rng_core",
    "cec",
    "ext2",
    "stp",
    "llc",
    "nf_conntrack",
    "nf_nat",
    "nf_defrag_ipv4",
    "nf_defrag_ipv6",
    "ip_tables",
    "x_tables",
    "nfnetlink",
    "bridge",
    "virtio_dma_buf",
];

/// Largest single file that is taken from a kernel package, in bytes.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// A kernel in the cache.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kernel {
    /// Release, like `6.1.0-56-amd64`.
    pub release: String,
    modules: Vec<Module>,
    built_in: String,
    #[serde(skip)]
    folder: PathBuf,
}

impl Kernel {
    /// All modules that any guest may get.
    pub fn wanted() -> impl Iterator<Item = &'static str> {
        GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).chain(ON_DEMAND).chain(ON_DEMAND_LARGE)
    }

    /// Takes packages apart into `folder`: `vmlinux`, `modules/` and `kernel.json`. Blocks for some ten seconds.
    ///
    /// # Errors
    /// [`BuildError::Malformed`] for packages without a kernel; what reading and writing says.
    pub fn extract(packages: &[PathBuf], folder: &Path) -> Result<(), BuildError> {
        let mut pass = Pass {
            wanted: Self::wanted().chain(KNOWN_NEEDS).map(str::to_owned).collect(),
            ..Pass::default()
        };
        pass.run(packages)?;
        // A kernel of another release may need modules that we did not foresee.
        while let Some(more) = pass.unforeseen() {
            pass = Pass { wanted: pass.wanted.union(&more).cloned().collect(), ..Pass::default() };
            pass.run(packages)?;
        }
        let what = packages.first().map_or(String::new(), |path| path.display().to_string());
        let (release, image) = pass.image.ok_or_else(|| malformed(what, "it has no boot/vmlinuz"))?;
        let elf = vmlinux::extract(&image)?;
        write(&folder.join("vmlinux"), &elf)?;
        let mut modules = Vec::new();
        for (module, bytes) in pass.modules {
            let path = folder.join("modules").join(format!("{}.ko", module.name));
            write(&path, &bytes)?;
            modules.push(module);
        }
        modules.sort_by(|a, b| a.name.cmp(&b.name));
        let kernel = Self { release, modules, built_in: pass.built_in, folder: PathBuf::new() };
        let record = serde_json::to_vec(&kernel).map_err(|error| malformed("the kernel's record", error))?;
        write(&folder.join("kernel.json"), &record)?;
        let whole = std::fs::File::open(folder).at("cannot read", folder)?;
        rustix::fs::syncfs(&whole).map_err(Into::into).at("cannot write", folder)
    }

    /// Opens what [`Self::extract`] made.
    ///
    /// # Errors
    /// [`BuildError::Io`], [`BuildError::Malformed`].
    pub fn open(folder: &Path) -> Result<Self, BuildError> {
        let path = folder.join("kernel.json");
        let bytes = std::fs::read(&path).at("cannot read", &path)?;
        let kernel: Self =
            serde_json::from_slice(&bytes).map_err(|error| malformed(path.display().to_string(), error))?;
        Ok(Self { folder: folder.to_owned(), ..kernel })
    }

    /// What depends on what.
    pub fn module_set(&self) -> ModuleSet {
        ModuleSet::new(self.modules.iter().cloned(), &self.built_in)
    }

    /// Contents of a module, not compressed.
    ///
    /// # Errors
    /// [`BuildError::Io`].
    pub fn module_bytes(&self, module: &Module) -> Result<Vec<u8>, BuildError> {
        let path = self.folder.join("modules").join(format!("{}.ko", module.name));
        std::fs::read(&path).at("cannot read", &path)
    }
}

/// One reading of the packages.
#[derive(Default)]
struct Pass {
    wanted: BTreeSet<String>,
    image: Option<(String, Vec<u8>)>,
    modules: Vec<(Module, Vec<u8>)>,
    built_in: String,
}

impl Pass {
    fn run(&mut self, packages: &[PathBuf]) -> Result<(), BuildError> {
        packages
            .iter()
            .try_for_each(|package| deb::for_each(package, |entry, reader| self.take(&entry, reader)))
    }

    fn take(&mut self, entry: &deb::Entry, reader: &mut dyn Read) -> Result<(), BuildError> {
        let EntryKind::File(bytes) = entry.kind else { return Ok(()) };
        let path = entry.path.strip_prefix("usr/").unwrap_or(&entry.path);
        if let Some(release) = path.strip_prefix("boot/vmlinuz-") {
            bounded(entry, bytes)?;
            self.image = Some((release.to_owned(), deb::contents(entry, reader)?));
        } else if let Some((_, file)) =
            path.strip_prefix("lib/modules/").and_then(|path| path.split_once('/'))
        {
            if file == "modules.builtin" {
                bounded(entry, bytes)?;
                self.built_in = String::from_utf8_lossy(&deb::contents(entry, reader)?).into_owned();
            } else if name_of(file).is_some_and(|name| self.wanted.contains(&name)) {
                bounded(entry, bytes)?;
                let elf = plain(file, deb::contents(entry, reader)?)?;
                let path = file.split_once(".ko").map_or(file.to_owned(), |(stem, _)| format!("{stem}.ko"));
                self.modules.push((Module::parse(&path, &elf)?, elf));
            }
        }
        Ok(())
    }

    /// Modules that those found need and that nobody asked for; `None` when there are none.
    fn unforeseen(&self) -> Option<BTreeSet<String>> {
        let built_in: BTreeSet<_> = self.built_in.lines().filter_map(name_of).collect();
        let needed = self.modules.iter().flat_map(|(module, _)| &module.depends);
        let more: BTreeSet<_> = needed
            .filter(|name| !self.wanted.contains(*name) && !built_in.contains(*name))
            .cloned()
            .collect();
        (!more.is_empty()).then_some(more)
    }
}

fn bounded(entry: &deb::Entry, bytes: u64) -> Result<(), BuildError> {
    if bytes > FILE_BYTES_MAX {
        Err(malformed(entry.path.as_str(), format!("{bytes} bytes are too many")))
    } else {
        Ok(())
    }
}

/// Undoes a module's own compression.
fn plain(path: &str, bytes: Vec<u8>) -> Result<Vec<u8>, BuildError> {
    let decoder: Box<dyn Read + '_> = match path.rsplit('.').next() {
        Some("zst") => Box::new(zstd::Decoder::new(&bytes[..]).map_err(|error| malformed(path, error))?),
        Some("xz") => Box::new(liblzma::read::XzDecoder::new(&bytes[..])),
        Some("gz") => Box::new(flate2::read::GzDecoder::new(&bytes[..])),
        _ => return Ok(bytes),
    };
    let mut elf = Vec::new();
    decoder.take(FILE_BYTES_MAX).read_to_end(&mut elf).map_err(|error| malformed(path, error))?;
    Ok(elf)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), BuildError> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).at("cannot make the folder", folder)?;
    }
    std::fs::write(path, bytes).at("cannot write", path)
}
