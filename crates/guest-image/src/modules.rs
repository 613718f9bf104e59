//! Kernel modules: what a module needs, by what names the kernel asks for it, and in which order to load.
//!
//! Debian's packages have no `modules.dep`; it is made when they are installed. We read the modules themselves.
//! Spec: the `.modinfo` section as written by Linux's `include/linux/module.h`; file formats of kmod's depmod(8).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::{BuildError, malformed};

/// Module and what is known about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Name with underscores.
    pub name: String,
    /// Path below `lib/modules/RELEASE/`.
    pub path: String,
    /// Names of the modules whose symbols it uses.
    pub depends: Vec<String>,
    /// Names or aliases that should be loaded before.
    pub soft_depends: Vec<String>,
    /// What the kernel may call it.
    pub aliases: Vec<String>,
}

/// Name that the kernel uses for the module in this file: no folder, no extension, underscores.
pub fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem = ["", ".xz", ".zst", ".gz"]
        .iter()
        .find_map(|extension| file.strip_suffix(extension)?.strip_suffix(".ko"))?;
    Some(stem.replace('-', "_"))
}

impl Module {
    /// Reads `.modinfo` of a module; `path` is below `lib/modules/RELEASE/`.
    ///
    /// # Errors
    /// [`BuildError::Malformed`] for what is no 64-bit little-endian ELF file with that section.
    pub fn parse(path: &str, elf: &[u8]) -> Result<Self, BuildError> {
        let name = name_of(path).ok_or_else(|| malformed(path, "it is not named like a module"))?;
        let info = section(elf, b".modinfo").ok_or_else(|| malformed(path, "it has no .modinfo"))?;
        let mut module = Self {
            name,
            path: path.to_owned(),
            depends: Vec::new(),
            soft_depends: Vec::new(),
            aliases: Vec::new(),
        };
        for field in info.split(|&byte| byte == 0) {
            let field = String::from_utf8_lossy(field);
            match field.split_once('=') {
                Some(("depends", names)) => module.depends.extend(
                    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")),
                ),
                Some(("softdep", list)) => module.soft_depends.extend(soft_depends(list)),
                Some(("alias", alias)) => module.aliases.push(alias.to_owned()),
                _ => {}
            }
        }
        Ok(module)
    }
}

/// The `pre:` names of a softdep line.
fn soft_depends(list: &str) -> Vec<String> {
    let mut is_pre = false;
    let mut names = Vec::new();
    for word in list.split_whitespace() {
        match word {
            "pre:" => is_pre = true,
            "post:" => is_pre = false,
            _ if is_pre => names.push(word.replace('-', "_")),
            _ => {}
        }
    }
    names
}

/// Contents of a section of a 64-bit little-endian ELF file.
fn section<'a>(elf: &'a [u8], wanted: &[u8]) -> Option<&'a [u8]> {
    let number = |at: usize, bytes: usize| -> Option<usize> {
        let field = elf.get(at..at.checked_add(bytes)?)?;
        usize::try_from(field.iter().rev().fold(0_u64, |sum, &byte| sum << 8 | u64::from(byte))).ok()
    };
    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, entry_bytes, entries, names_index) =
        (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?, number(0x3e, 2)?);
    let header = |index: usize| table.checked_add(index.checked_mul(entry_bytes)?);
    let names_offset = number(header(names_index)?.checked_add(0x18)?, 8)?;
    (0..entries).find_map(|index| {
        let at = header(index)?;
        let name = elf.get(names_offset.checked_add(number(at, 4)?)?..)?;
        if name.get(..wanted.len())? != wanted || name.get(wanted.len()) != Some(&0) {
            return None;
        }
        let (offset, length) = (number(at.checked_add(0x18)?, 8)?, number(at.checked_add(0x20)?, 8)?);
        elf.get(offset..offset.checked_add(length)?)
    })
}

/// Modules of one kernel.
#[derive(Debug, Default)]
pub struct ModuleSet {
    modules: BTreeMap<String, Module>,
    built_in: BTreeSet<String>,
}

impl ModuleSet {
    /// Takes the modules, and the contents of `modules.builtin`.
    pub fn new(modules: impl IntoIterator<Item = Module>, built_in: &str) -> Self {
        Self {
            modules: modules.into_iter().map(|module| (module.name.clone(), module)).collect(),
            built_in: built_in.lines().filter_map(name_of).collect(),
        }
    }

    /// Modules to load for `name`, itself last; empty when it is built in, `None` when the kernel lacks it.
    ///
    /// Soft dependencies by alias (`crc32c`) take the generic implementation, and are dropped when there is none.
    pub fn load_order(&self, name: &str) -> Option<Vec<&Module>> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        self.visit(name, &mut seen, &mut order).then_some(order)
    }

    fn visit<'a>(&'a self, name: &str, seen: &mut BTreeSet<String>, order: &mut Vec<&'a Module>) -> bool {
        if self.built_in.contains(name) {
            return true;
        }
        let Some(module) = self.modules.get(name) else { return false };
        if !seen.insert(name.to_owned()) {
            return true;
        }
        for soft in &module.soft_depends {
            let generic = format!("{soft}_generic");
            let _is_optional = self.visit(soft, seen, order) || self.visit(&generic, seen, order);
        }
        let has_all = module.depends.iter().all(|needed| self.visit(needed, seen, order));
        order.push(module);
        has_all
    }

    /// All of `names` with what they need, each once, in an order that loads; those that the kernel lacks are left out.
    pub fn closure<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Vec<&Module> {
        let mut seen = BTreeSet::new();
        let mut all = Vec::new();
        for module in names.into_iter().filter_map(|name| self.load_order(name)).flatten() {
            if seen.insert(module.name.clone()) {
                all.push(module);
            }
        }
        all
    }
}

/// Contents of `modules.dep` for these modules: `path: paths of all it needs, nearest first`.
pub fn modules_dep(set: &ModuleSet, modules: &[&Module]) -> String {
    let mut text = String::new();
    for module in modules {
        let mut needed = set.load_order(&module.name).unwrap_or_default();
        needed.pop();
        let paths: Vec<_> = needed.iter().rev().map(|module| format!(" {}", module.path)).collect();
        text.push_str(&format!("{}:{}\n", module.path, paths.concat()));
    }
    text
}

/// Contents of `modules.alias` for these modules.
pub fn modules_alias(modules: &[&Module]) -> String {
    let lines = modules
        .iter()
        .flat_map(|module| module.aliases.iter().map(|alias| format!("alias {alias} {}\n", module.name)));
    lines.collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A module that is nothing but its `.modinfo`.
    pub(crate) fn module_file(info: &[&str]) -> Vec<u8> {
        let body: Vec<u8> = info.iter().flat_map(|field| field.bytes().chain([0])).collect();
        let names = b"\0.modinfo\0";
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        let (info_at, names_at) = (64, 64 + body.len());
        let table = names_at + names.len();
        elf[0x28..0x30].copy_from_slice(&table.to_le_bytes());
        elf[0x3a..0x40].copy_from_slice(&[64, 0, 3, 0, 2, 0]);
        elf.extend(&body);
        elf.extend(names);
        for (name, offset, length) in [(0_u32, 0, 0), (1, info_at, body.len()), (0, names_at, names.len())] {
            let mut header = [0; 64];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&offset.to_le_bytes());
            header[0x20..0x28].copy_from_slice(&length.to_le_bytes());
            elf.extend(header);
        }
        elf
    }

    fn set(modules: &[(&str, &str)]) -> ModuleSet {
        let parse = |(path, info): &(&str, &str)| {
            Module::parse(path, &module_file(&info.split('|').collect::<Vec<_>>())).unwrap()
        };
        ModuleSet::new(modules.iter().map(parse), "kernel/lib/crc-built-in.ko\n")
    }

    fn order(set: &ModuleSet, name: &str) -> Option<String> {
        set.load_order(name)
            .map(|modules| modules.iter().map(|module| module.name.as_str()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn what_a_module_needs_is_loaded_before_it() {
        let set = set(&[
            ("kernel/fs/9p/9p.ko", "depends=9pnet,fscache"),
            ("kernel/net/9p/9pnet.ko", "depends="),
            ("kernel/fs/fscache.ko.zst", "depends=9pnet,crc-built-in"),
            ("kernel/lib/libcrc32c.ko", "softdep=pre: crc32c post: other|depends="),
            ("kernel/crypto/crc32c_generic.ko", "alias=crc32c"),
            ("kernel/a.ko", "depends=gone"),
        ]);
        assert_eq!(order(&set, "9p").as_deref(), Some("9pnet fscache 9p"));
        assert_eq!(order(&set, "libcrc32c").as_deref(), Some("crc32c_generic libcrc32c"));
        assert_eq!(order(&set, "crc_built_in").as_deref(), Some(""));
        assert_eq!(order(&set, "gone"), None);
        assert_eq!(order(&set, "a"), None);
        let all = set.closure(["9p", "gone", "fscache", "libcrc32c"]);
        assert_eq!(all.len(), 5);
        assert!(
            modules_dep(&set, &all)
                .contains("kernel/fs/9p/9p.ko: kernel/fs/fscache.ko.zst kernel/net/9p/9pnet.ko\n")
        );
        assert_eq!(modules_alias(&all), "alias crc32c crc32c_generic\n");
    }

    #[test]
    fn rings_end() {
        let set = set(&[("a.ko", "depends=b"), ("b.ko", "depends=a")]);
        assert_eq!(order(&set, "a").as_deref(), Some("b a"));
    }

    #[test]
    fn broken_files_are_errors_not_panics() {
        let whole = module_file(&["depends=x"]);
        let headers = whole.len() - 3 * 64;
        for length in 0..headers {
            assert!(Module::parse("a.ko", &whole[..length]).is_err(), "{length}");
        }
        let mut wild = whole;
        wild[0x28..0x30].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(Module::parse("a.ko", &wild).is_err());
        assert!(Module::parse("a.txt", &[]).is_err());
    }
}
