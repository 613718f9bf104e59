//! What is in the initial file system: PID 1, modules, and for a guest without packages all of its userland.

use crate::cpio::CpioWriter;
use crate::error::{BuildError, malformed};
use crate::kernel::{GROUPS, Kernel, ON_DEMAND};
use crate::modules::{Module, modules_alias, modules_dep};
use crate::userland::{FOLDERS, SETTINGS, SYMLINKS, applets, is_system_applet};

/// Where PID 1 reads which modules to load: lines of `GROUP PATH`, in order.
pub const MODULES_MANIFEST: &str = "etc/coracle/modules";
/// Says, by being there, that the root file system is on the first disk.
pub const ROOT_MARKER: &str = "etc/coracle/root";

/// Ingredients of an initramfs.
pub struct Initramfs<'a> {
    /// PID 1, a static executable.
    pub init: &'a [u8],
    /// Where modules come from.
    pub kernel: &'a Kernel,
    /// Userland; without it, the root file system is on a disk.
    pub base: Option<Base<'a>>,
}

/// Userland of a guest without packages.
pub struct Base<'a> {
    /// Static busybox.
    pub busybox: &'a [u8],
    /// `/etc/os-release` of the distribution.
    pub os_release: &'a [u8],
}

impl Initramfs<'_> {
    /// Writes the archive.
    ///
    /// # Errors
    /// [`BuildError::Io`] when a module cannot be read.
    pub fn build(&self) -> Result<Vec<u8>, BuildError> {
        let set = self.kernel.module_set();
        let loaded = GROUPS
            .iter()
            .filter(|(group, _)| *group != "root" || self.base.is_none())
            .flat_map(|(_, names)| names.iter().copied());
        let modules = match self.base {
            Some(_) => set.closure(loaded.chain(ON_DEMAND)),
            None => set.closure(loaded),
        };
        let bytes =
            modules.iter().map(|module| self.kernel.module_bytes(module)).collect::<Result<Vec<_>, _>>()?;
        self.write(&modules, &bytes).map_err(|error| malformed("the initramfs", error))
    }

    fn write(&self, modules: &[&Module], module_bytes: &[Vec<u8>]) -> std::io::Result<Vec<u8>> {
        let mut archive = CpioWriter::new(Vec::new());
        for (path, permissions) in FOLDERS {
            archive.folder(path, permissions)?;
        }
        for (path, target) in SYMLINKS {
            archive.symlink(path, target)?;
        }
        archive.file("init", 0o755, self.init)?;
        // The kernel opens it for PID 1 before PID 1 can mount /dev.
        archive.char_device("dev/console", 0o600, 5, 1)?;
        archive.char_device("dev/null", 0o666, 1, 3)?;
        for (path, text) in SETTINGS {
            let permissions = if path == "etc/shadow" { 0o600 } else { 0o644 };
            archive.file(path, permissions, text.as_bytes())?;
        }
        archive.file(MODULES_MANIFEST, 0o644, manifest(self.kernel).as_bytes())?;
        match &self.base {
            Some(base) => write_base(&mut archive, base)?,
            None => archive.file(ROOT_MARKER, 0o644, b"erofs\n")?,
        }
        let root = format!("usr/lib/modules/{}", self.kernel.release);
        let mut folders: Vec<String> = vec![root.clone()];
        for module in modules {
            let ends = module.path.match_indices('/').map(|(at, _)| format!("{root}/{}", &module.path[..at]));
            folders.extend(ends);
        }
        folders.sort();
        folders.dedup();
        for folder in &folders {
            archive.folder(folder, 0o755)?;
        }
        for (module, bytes) in modules.iter().zip(module_bytes) {
            archive.file(&format!("{root}/{}", module.path), 0o644, bytes)?;
        }
        archive.file(
            &format!("{root}/modules.dep"),
            0o644,
            modules_dep(&self.kernel.module_set(), modules).as_bytes(),
        )?;
        archive.file(&format!("{root}/modules.alias"), 0o644, modules_alias(modules).as_bytes())?;
        archive.finish()
    }
}

fn write_base(archive: &mut CpioWriter<Vec<u8>>, base: &Base<'_>) -> std::io::Result<()> {
    archive.file("usr/lib/os-release", 0o644, base.os_release)?;
    archive.symlink("etc/os-release", "../usr/lib/os-release")?;
    archive.file("usr/bin/busybox", 0o755, base.busybox)?;
    for name in applets(base.busybox) {
        let folder = if is_system_applet(&name) { "usr/sbin" } else { "usr/bin" };
        archive.symlink(&format!("{folder}/{name}"), "/usr/bin/busybox")?;
    }
    Ok(())
}

/// Lines of `GROUP PATH` for PID 1, in an order that loads.
pub fn manifest(kernel: &Kernel) -> String {
    let set = kernel.module_set();
    let mut text = String::new();
    for (group, names) in GROUPS {
        for module in set.closure(names.iter().copied()) {
            text.push_str(&format!("{group} /usr/lib/modules/{}/{}\n", kernel.release, module.path));
        }
    }
    text
}
