//! Loads kernel modules in the order that the image's manifest gives.
//!
//! The manifest has lines of `GROUP PATH`; a group is loaded when what it is for is asked for, so that a guest without
//! network does not spend time on its driver.

use std::collections::HashSet;
use std::fs::File;
use std::io;

/// Where the image keeps the manifest.
const MANIFEST: &str = "/etc/coracle/modules";

/// Modules of the image.
#[derive(Debug, Default)]
pub struct Modules {
    lines: Vec<(String, String)>,
    loaded: HashSet<String>,
}

impl Modules {
    /// Reads the manifest; an image without one has nothing to load.
    pub fn open() -> Self {
        Self::parse(&std::fs::read_to_string(MANIFEST).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let lines = text
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(group, path)| (group.to_owned(), path.to_owned()));
        Self { lines: lines.collect(), loaded: HashSet::new() }
    }

    /// Paths of a group that are not loaded yet, in order; they count as loaded from now on.
    fn take(&mut self, group: &str) -> Vec<String> {
        let of_group = self.lines.iter().filter(|(name, _)| name == group).map(|(_, path)| path);
        of_group.filter(|path| self.loaded.insert((*path).clone())).cloned().collect()
    }

    /// Loads a group.
    ///
    /// # Errors
    /// The path and what the kernel says, of the first module that fails.
    pub fn load(&mut self, group: &str) -> Result<(), String> {
        self.take(group)
            .iter()
            .try_for_each(|path| load(path).map_err(|error| format!("cannot load {path}: {error}")))
    }
}

fn load(path: &str) -> io::Result<()> {
    let file = File::open(path)?;
    match rustix::system::finit_module(&file, c"", 0) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        result => Ok(result?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_taken_in_order_and_nothing_twice() {
        let mut modules =
            Modules::parse("boot /virtio.ko\nboot /virtio_mmio.ko\nnet /virtio.ko\nnet /net.ko\nnonsense\n");
        assert_eq!(modules.take("boot"), ["/virtio.ko", "/virtio_mmio.ko"]);
        assert_eq!(modules.take("net"), ["/net.ko"]);
        assert!(modules.take("net").is_empty());
        assert!(modules.take("other").is_empty());
    }

    #[test]
    fn a_module_that_is_not_there_is_named() {
        let message = Modules::parse("boot /nowhere.ko").load("boot").unwrap_err();
        assert!(message.starts_with("cannot load /nowhere.ko: "), "{message}");
    }
}
