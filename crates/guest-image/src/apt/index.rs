//! Package indexes: what can be had, in which version, and what it needs.
//!
//! Spec: Debian Policy §5.3 and §7.1; fields of a Packages file: DebianRepository/Format.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io::BufRead;

use super::deb822::{Paragraph, Paragraphs};
use super::release::Checksum;
use super::version;
use crate::error::{BuildError, malformed};

/// One version of one package.
#[derive(Debug, Clone)]
pub struct Package {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// `Pre-Depends` and `Depends`, joined by a comma.
    pub depends: String,
    /// `Recommends`.
    pub recommends: String,
    /// `Provides`.
    pub provides: String,
    /// URL of the `.deb`.
    pub url: String,
    /// Size and hash of the `.deb`.
    pub checksum: Checksum,
}

/// All packages of all suites; of several versions only the highest.
#[derive(Debug, Default)]
pub struct Index {
    packages: HashMap<String, Package>,
    /// Virtual package to the names of those that provide it (and the version provided).
    providers: HashMap<String, BTreeSet<(String, Option<String>)>>,
    suites: Vec<String>,
}

/// Packages that only set others up; without maintainer scripts they are of no use.
const CONFIGURATION_ONLY: [&str; 18] = [
    "adduser",
    "apt",
    "cdebconf",
    "debconf",
    "debconf-2.0",
    "dpkg",
    "init-system-helpers",
    "install-info",
    "libpam-runtime",
    "lsb-base",
    "passwd",
    "sysvinit-utils",
    "systemd",
    "systemd-sysv",
    "ucf",
    "udev",
    "man-db",
    "libc-bin",
];

impl Index {
    /// Adds a Packages file of the archive at `base_url`.
    ///
    /// # Errors
    /// [`BuildError::Malformed`], naming `what`.
    pub fn add(
        &mut self,
        what: &str,
        base_url: &str,
        suite: &str,
        packages: impl BufRead,
    ) -> Result<(), BuildError> {
        const KEPT: [&str; 10] = [
            "Recommends",
            "Package",
            "Version",
            "Architecture",
            "Depends",
            "Pre-Depends",
            "Provides",
            "Filename",
            "Size",
            "SHA256",
        ];
        let mut paragraphs = Paragraphs::only(packages, |name| KEPT.contains(&name));
        while let Some(paragraph) = paragraphs.read().map_err(|error| malformed(what, error))? {
            if !matches!(paragraph.field("Architecture"), Some("amd64" | "all")) {
                continue;
            }
            let package = parse(&paragraph, base_url).ok_or_else(|| {
                malformed(what, format!("line {}: a package lacks a field", paragraph.line))
            })?;
            let is_newer = self
                .packages
                .get(&package.name)
                .is_none_or(|known| version::compare(&known.version, &package.version).is_lt());
            if is_newer {
                self.packages.insert(package.name.clone(), package);
            }
        }
        if !self.suites.iter().any(|known| known == suite) {
            self.suites.push(suite.to_owned());
        }
        Ok(())
    }

    /// Works out who provides what; call once after the last [`Self::add`].
    pub fn finish(&mut self) {
        for package in self.packages.values() {
            for provided in relations(&package.provides).into_iter().flatten() {
                let version = provided.version.map(|(_, version)| version.to_owned());
                self.providers
                    .entry(provided.name.to_owned())
                    .or_default()
                    .insert((package.name.clone(), version));
            }
        }
    }

    /// The package of this very name.
    ///
    /// # Errors
    /// [`BuildError::NoPackage`].
    pub fn find(&self, name: &str) -> Result<&Package, BuildError> {
        self.packages
            .get(name)
            .ok_or_else(|| BuildError::NoPackage { name: name.to_owned(), suites: self.suites.join(", ") })
    }

    /// The package of this very name, if there is one.
    pub fn try_find(&self, name: &str) -> Option<&Package> {
        self.packages.get(name)
    }

    /// The wanted packages, what they recommend (a C compiler its headers) and everything that these depend on, by name.
    ///
    /// Packages that merely configure others are left out unless they are asked for.
    ///
    /// # Errors
    /// [`BuildError::NoPackage`] for a wanted or needed package that no suite has.
    pub fn closure(&self, wanted: &[String]) -> Result<Vec<&Package>, BuildError> {
        let mut chosen: BTreeSet<String> = BTreeSet::new();
        let mut queue: VecDeque<String> = VecDeque::new();
        for name in wanted {
            let is_real = self.packages.contains_key(name);
            let provider = if is_real { None } else { self.provider(name, None, &chosen) };
            let name = provider.map_or_else(|| self.find(name).map(|package| package.name.clone()), Ok)?;
            if chosen.insert(name.clone()) {
                queue.push_back(name);
            }
        }
        for name in queue.clone() {
            for alternatives in relations(&self.find(&name)?.recommends) {
                // A recommendation that cannot be met is none.
                if let Ok(Some(next)) = self.choose(&alternatives, &chosen) {
                    chosen.insert(next.clone());
                    queue.push_back(next);
                }
            }
        }
        while let Some(name) = queue.pop_front() {
            for alternatives in relations(&self.find(&name)?.depends) {
                if let Some(next) =
                    self.choose(&alternatives, &chosen).map_err(|missing| self.needed_by(&missing, &name))?
                {
                    chosen.insert(next.clone());
                    queue.push_back(next);
                }
            }
        }
        chosen.iter().map(|name| self.find(name)).collect()
    }

    /// The first alternative that can be had; `None` when one is chosen already or none is needed.
    fn choose(
        &self,
        alternatives: &[Relation<'_>],
        chosen: &BTreeSet<String>,
    ) -> Result<Option<String>, String> {
        let is_met = alternatives.iter().any(|relation| {
            CONFIGURATION_ONLY.contains(&relation.name)
                || chosen.contains(relation.name)
                || self
                    .providers
                    .get(relation.name)
                    .is_some_and(|providers| providers.iter().any(|(name, _)| chosen.contains(name)))
        });
        if is_met {
            return Ok(None);
        }
        for relation in alternatives {
            let is_real =
                self.packages.get(relation.name).is_some_and(|package| relation.admits(&package.version));
            if is_real {
                return Ok(Some(relation.name.to_owned()));
            }
            if let Some(provider) = self.provider(relation.name, relation.version, chosen) {
                return Ok(Some(provider));
            }
        }
        Err(alternatives.first().map_or(String::new(), |relation| relation.name.to_owned()))
    }

    fn provider(
        &self,
        name: &str,
        wanted: Option<(&str, &str)>,
        chosen: &BTreeSet<String>,
    ) -> Option<String> {
        let providers = self.providers.get(name)?;
        let fits = |version: &Option<String>| {
            wanted.is_none_or(|(relation, wanted)| {
                version.as_deref().is_some_and(|version| version::satisfies(version, relation, wanted))
            })
        };
        let mut fitting = providers.iter().filter(|(_, version)| fits(version)).map(|(name, _)| name);
        let first = fitting.clone().next()?;
        Some(fitting.find(|name| chosen.contains(*name)).unwrap_or(first).clone())
    }

    fn no_package(&self, name: &str) -> BuildError {
        BuildError::NoPackage { name: name.to_owned(), suites: self.suites.join(", ") }
    }

    fn needed_by(&self, missing: &str, by: &str) -> BuildError {
        self.no_package(&format!("{missing} (needed by {by})"))
    }
}

fn parse(paragraph: &Paragraph, base_url: &str) -> Option<Package> {
    let field = |name| paragraph.field(name).map(str::to_owned);
    let depends: Vec<_> =
        [paragraph.field("Pre-Depends"), paragraph.field("Depends")].into_iter().flatten().collect();
    Some(Package {
        name: field("Package")?,
        version: field("Version")?,
        depends: depends.join(", "),
        recommends: field("Recommends").unwrap_or_default(),
        provides: field("Provides").unwrap_or_default(),
        url: format!("{base_url}/{}", paragraph.field("Filename")?),
        checksum: Checksum {
            bytes: paragraph.field("Size")?.parse().ok()?,
            sha256: field("SHA256")?.to_ascii_lowercase(),
        },
    })
}

/// One `name [(relation version)]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relation<'a> {
    /// Name without an architecture.
    pub name: &'a str,
    /// Relation and version.
    pub version: Option<(&'a str, &'a str)>,
}

impl Relation<'_> {
    fn admits(&self, version: &str) -> bool {
        self.version.is_none_or(|(relation, wanted)| version::satisfies(version, relation, wanted))
    }
}

/// Takes a dependency field apart: groups of alternatives, all of which are needed.
pub fn relations(field: &str) -> Vec<Vec<Relation<'_>>> {
    let groups = field.split(',').map(|group| group.split('|').filter_map(relation).collect::<Vec<_>>());
    groups.filter(|group| !group.is_empty()).collect()
}

fn relation(text: &str) -> Option<Relation<'_>> {
    let (name, version) = match text.split_once('(') {
        Some((name, rest)) => {
            let inside = rest.split(')').next().unwrap_or("").trim();
            let end = inside.find(|c: char| !"<>=".contains(c)).unwrap_or(inside.len());
            (name, Some((&inside[..end], inside[end..].trim())))
        }
        None => (text, None),
    };
    let name = name.split(['[', '<']).next().unwrap_or("").trim();
    let name = name.split(':').next().unwrap_or(name);
    (!name.is_empty()).then_some(Relation { name, version })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(packages: &[(&str, &str, &str, &str)]) -> Index {
        let mut index = Index::default();
        for (suite, (name, version, depends, provides)) in packages.iter().enumerate() {
            let text = format!(
                "Package: {name}\nVersion: {version}\nArchitecture: amd64\nDepends: {depends}\nProvides: {provides}\nFilename: pool/{name}.deb\nSize: 1\nSHA256: 00\n\nPackage: {name}\nArchitecture: i386\n"
            );
            index.add("test", "http://m", &format!("suite{suite}"), text.as_bytes()).unwrap();
        }
        index.finish();
        index
    }

    #[test]
    fn what_a_wanted_package_recommends_comes_along_but_no_further() {
        let mut index = Index::default();
        for (name, field) in [
            ("gcc", "Depends: cpp\nRecommends: libc-dev | x, nothing"),
            ("cpp", "Recommends: cpp-doc"),
            ("cpp-doc", "X: y"),
            ("libc-dev", "Recommends: manpages"),
            ("manpages", "X: y"),
        ] {
            let text = format!(
                "Package: {name}\nVersion: 1\nArchitecture: all\n{field}\nFilename: f\nSize: 1\nSHA256: 00\n"
            );
            index.add("test", "http://m", "s", text.as_bytes()).unwrap();
        }
        index.finish();
        assert_eq!(closure(&index, "gcc"), "cpp gcc libc-dev");
    }

    fn closure(index: &Index, wanted: &str) -> String {
        let wanted: Vec<_> = wanted.split(' ').map(str::to_owned).collect();
        index.closure(&wanted).map_or_else(
            |error| error.to_string(),
            |packages| packages.iter().map(|package| package.name.as_str()).collect::<Vec<_>>().join(" "),
        )
    }

    #[test]
    fn the_highest_version_of_all_suites_wins() {
        let index = index(&[
            ("linux", "6.1.9-1", "", ""),
            ("linux", "6.1.10-1", "", ""),
            ("linux", "6.1.2-1", "", ""),
        ]);
        assert_eq!(index.find("linux").unwrap().version, "6.1.10-1");
    }

    #[test]
    fn dependencies_are_followed_through_alternatives_versions_and_virtual_packages() {
        let index = index(&[
            (
                "git",
                "1",
                "libc6 (>= 2.28), perl:any, debconf (>= 0.5) | debconf-2.0, missing | pcre (>= 3) | libc6",
                "",
            ),
            ("libc6", "2.36", "", ""),
            ("perl", "5", "mta", ""),
            ("exim", "4", "libc6", "mta"),
            ("postfix", "3", "", "mta"),
            ("pcre", "2", "", ""),
        ]);
        assert_eq!(closure(&index, "git"), "exim git libc6 perl");
        assert_eq!(closure(&index, "postfix git"), "git libc6 perl postfix");
        assert_eq!(closure(&index, "mta"), "exim libc6");
    }

    #[test]
    fn what_is_missing_is_named_with_who_needs_it() {
        let index = index(&[("a", "1", "b (>= 2)", ""), ("b", "1", "", "")]);
        assert_eq!(closure(&index, "a"), "package b (needed by a) is in none of the suites suite0, suite1");
        assert_eq!(closure(&index, "nope"), "package nope is in none of the suites suite0, suite1");
    }

    #[test]
    fn loops_end() {
        let index = index(&[("a", "1", "b", ""), ("b", "1", "a", "")]);
        assert_eq!(closure(&index, "a"), "a b");
    }

    #[test]
    fn a_package_without_a_hash_is_refused() {
        let text = "Package: a\nVersion: 1\nArchitecture: amd64\nFilename: x\nSize: 1\n";
        assert!(Index::default().add("test", "u", "s", text.as_bytes()).is_err());
    }
}
