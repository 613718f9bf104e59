//! The build itself: from a request to a cached image.

use std::io::BufReader;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};

use crate::apt::config::AptConfig;
use crate::apt::index::{Index, Package, relations};
use crate::apt::release::{Checksum, Release};
use crate::apt::signature::verified_text;
use crate::apt::sources::{self, Source};
use crate::cache::{Cache, ImageRecord};
use crate::deb;
use crate::error::{BuildError, IoContext, malformed};
use crate::fetch::{Client, Proxies, has_checksum, hex};
use crate::initramfs::{Base, Initramfs};
use crate::kernel::Kernel;
use crate::rootfs;
use crate::userland::applets;
use crate::{GuestImage, Progress, Request};

/// Raised whenever the same packages would give a different image.
const BUILDER_VERSION: &str = "5";
/// Raised whenever the same kernel package would be taken apart differently.
const KERNEL_VERSION: &str = "3";

/// Kernel metapackages, in order of preference: Debian's, Ubuntu's. (`linux-image-cloud-amd64` has no 9P.)
const KERNEL_PACKAGES: [&str; 2] = ["linux-image-amd64", "linux-image-generic"];

/// Packages that every guest has something of: busybox itself, and the name of the distribution.
const BASE_PACKAGES: [&str; 2] = ["busybox-static", "base-files"];

/// Builds the image of a request, or finds that it is there already, after asking the mirror what is current.
///
/// Blocks, for a minute the first time. Waits while another process builds in the same cache.
///
/// # Errors
/// [`BuildError`], one line each.
pub fn build(request: &Request<'_>, progress: &dyn Progress) -> Result<GuestImage, BuildError> {
    let cache = Cache::new(&request.cache_dir);
    let mut has_waited = false;
    let _lock = cache.lock(|| {
        has_waited = true;
        progress.stage("waiting for another build", None);
    })?;
    if let Some(image) = try_cached(request)?.filter(|_| has_waited || request.offline) {
        progress.finish();
        return Ok(image);
    }
    let config = AptConfig::load(&request.apt_root);
    let proxies = Proxies {
        http: config.http_proxy.clone().or_else(|| request.proxies.http.clone()),
        https: config
            .https_proxy
            .clone()
            .or(config.http_proxy.clone())
            .or_else(|| request.proxies.https.clone()),
    };
    let builder = Builder {
        request,
        cache: &cache,
        client: Client::new(&proxies)?,
        progress,
        ignore_valid_until: config.ignore_valid_until,
    };
    let image = builder.run()?;
    progress.finish();
    Ok(image)
}

/// The image that this request gave last, if all of it is still in the cache. No network, a few small files.
///
/// # Errors
/// None today; what is broken in the cache counts as missing, and is built again.
pub fn try_cached(request: &Request<'_>) -> Result<Option<GuestImage>, BuildError> {
    let cache = Cache::new(&request.cache_dir);
    let Some(record) = cache.find_request(&request_key(request)) else { return Ok(None) };
    cache.touch(&record.id);
    Ok(Some(image_of(&cache, record)))
}

fn image_of(cache: &Cache, record: ImageRecord) -> GuestImage {
    let folder = cache.path("images", &record.id);
    GuestImage {
        kernel: cache.path("kernel", &record.kernel_key).join("vmlinux"),
        initramfs: folder.join("initramfs.cpio"),
        rootfs: record.has_rootfs.then(|| folder.join("rootfs.erofs")),
        id: record.id,
        kernel_version: record.kernel_version,
        packages: record.packages,
    }
}

/// Hash over everything in a request that decides what is built, except what the mirror has today.
fn request_key(request: &Request<'_>) -> String {
    let mut packages = request.packages.clone();
    packages.sort();
    packages.dedup();
    let sources = match &request.mirror {
        Some(mirror) => format!("{mirror} {:?}", request.suite),
        // Sources that cannot be read are reported by `build`.
        None => sources::load(&request.apt_root).map(|sources| format!("{sources:?}")).unwrap_or_default(),
    };
    address(&[
        BUILDER_VERSION,
        KERNEL_VERSION,
        &packages.join(" "),
        &sources,
        &hex(&Sha256::digest(request.init)),
    ])
}

/// Content address of a list of strings.
fn address(parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.len().to_le_bytes());
        hasher.update(part);
    }
    hex(&hasher.finalize()[..16])
}

struct Builder<'a> {
    request: &'a Request<'a>,
    cache: &'a Cache,
    client: Client,
    progress: &'a dyn Progress,
    ignore_valid_until: bool,
}

impl Builder<'_> {
    fn run(&self) -> Result<GuestImage, BuildError> {
        let index = self.index()?;
        let kernel_packages = kernel_packages(&index)?;
        let n_kernel = kernel_packages.len();
        let mut packages = kernel_packages.clone();
        for name in BASE_PACKAGES {
            packages.push(index.find(name)?);
        }
        let n_base = packages.len();
        let wanted = index.closure(&self.request.packages)?;
        packages.extend(wanted.into_iter().filter(|package| !BASE_PACKAGES.contains(&package.name.as_str())));
        let files = self.fetch(&packages)?;
        let hashes: Vec<_> = kernel_packages.iter().map(|package| package.checksum.sha256.as_str()).collect();
        let kernel_key = address(&[KERNEL_VERSION, &hashes.join(" ")]);
        let kernel = self.kernel(&kernel_key, &files[..n_kernel])?;
        let record = ImageRecord {
            id: self.image_id(&packages),
            kernel_key,
            kernel_version: kernel.release.clone(),
            has_rootfs: !self.request.packages.is_empty(),
            packages: packages
                .iter()
                .map(|package| format!("{} {}", package.name, package.version))
                .collect(),
            archives: packages.iter().map(|package| package.checksum.sha256.clone()).collect(),
        };
        if self.cache.find_whole_image(&record.id).is_none() {
            self.write_image(&record, &kernel, &files[n_kernel..n_base], &files[n_base..])?;
        }
        self.cache.write("requests", &request_key(self.request), record.id.as_bytes())?;
        Ok(image_of(self.cache, record))
    }

    fn image_id(&self, packages: &[&Package]) -> String {
        let mut hashes: Vec<_> = packages.iter().map(|package| package.checksum.sha256.as_str()).collect();
        hashes.sort_unstable();
        let kind = if self.request.packages.is_empty() { "base" } else { "root" };
        address(&[
            BUILDER_VERSION,
            KERNEL_VERSION,
            kind,
            &hashes.join(" "),
            &hex(&Sha256::digest(self.request.init)),
        ])
    }

    fn write_image(
        &self,
        record: &ImageRecord,
        kernel: &Kernel,
        base: &[PathBuf],
        packages: &[PathBuf],
    ) -> Result<(), BuildError> {
        self.progress.stage("building the file system", None);
        let busybox = file_of(&base[0], &["bin/busybox", "usr/bin/busybox"])?;
        if !applets(&busybox).iter().any(|name| name == "sh") {
            return Err(malformed("busybox", "it has no shell"));
        }
        let os_release = file_of(&base[1], &["usr/lib/os-release", "etc/os-release"])?;
        let base = Base { busybox: &busybox, os_release: &os_release };
        let tmp = self.cache.temporary(&record.id);
        std::fs::create_dir_all(&tmp).at("cannot make the folder", &tmp)?;
        let in_initramfs = if record.has_rootfs {
            rootfs::write(&tmp.join("rootfs.erofs"), packages, kernel, &base)?;
            None
        } else {
            Some(base)
        };
        let initramfs = Initramfs { init: self.request.init, kernel, base: in_initramfs }.build()?;
        let json = serde_json::to_vec(record).map_err(|error| malformed("the image's record", error))?;
        for (name, bytes) in [("initramfs.cpio", &initramfs), ("image.json", &json)] {
            write_synced(&tmp.join(name), bytes)?;
        }
        self.cache.commit_folder(&tmp, "images", &record.id).map(|_| ())
    }

    fn kernel(&self, key: &str, files: &[PathBuf]) -> Result<Kernel, BuildError> {
        let folder = self.cache.path("kernel", key);
        if !(folder.join("kernel.json").exists() && folder.join("vmlinux").exists()) {
            self.progress.stage("unpacking the kernel", None);
            let tmp = self.cache.temporary(key);
            Kernel::extract(files, &tmp)?;
            self.cache.commit_folder(&tmp, "kernel", key)?;
        }
        Kernel::open(&folder)
    }

    /// Fetches packages; the paths are in the same order.
    fn fetch(&self, packages: &[&Package]) -> Result<Vec<PathBuf>, BuildError> {
        let mut missing = Vec::new();
        for package in packages {
            if !has_checksum(&self.archive(&package.checksum), &package.checksum)? {
                missing.push(package);
            }
        }
        if let Some(package) = missing.first().filter(|_| self.request.offline) {
            return Err(BuildError::Offline(format!("package {} {}", package.name, package.version)));
        }
        if !missing.is_empty() {
            self.progress
                .stage("fetching packages", Some(missing.iter().map(|package| package.checksum.bytes).sum()));
        }
        for package in missing {
            self.client.download(
                &package.url,
                &package.checksum,
                &self.archive(&package.checksum),
                self.progress,
            )?;
        }
        Ok(packages.iter().map(|package| self.archive(&package.checksum)).collect())
    }

    fn archive(&self, checksum: &Checksum) -> PathBuf {
        self.cache.path("archive", &checksum.sha256)
    }

    /// Index over all sources.
    fn index(&self) -> Result<Index, BuildError> {
        let sources = match &self.request.mirror {
            Some(mirror) => {
                vec![sources::of_mirror(&self.request.apt_root, mirror, self.request.suite.as_deref())?]
            }
            None => sources::load(&self.request.apt_root)?,
        };
        self.progress.stage("reading package lists", None);
        let mut index = Index::default();
        for source in &sources {
            let release = self.release(source)?;
            if release.is_not_automatic && sources.len() > 1 {
                continue;
            }
            for component in &source.components {
                self.add_packages(source, &release, component, &mut index)?;
            }
        }
        index.finish();
        Ok(index)
    }

    fn release(&self, source: &Source) -> Result<Release, BuildError> {
        let url = source.dist_url("InRelease");
        let name = address(&[&url]);
        let bytes = if self.request.offline {
            std::fs::read(self.cache.path("release", &name)).map_err(|_| BuildError::Offline(url.clone()))?
        } else {
            self.client.get(&url)?
        };
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let text = verified_text(&url, &bytes, &source.trust, now_s)?;
        let release = Release::parse(&url, &text)?;
        // Offline, an old list is what was asked for.
        if release.is_expired(now_s as i64) && !self.ignore_valid_until && !self.request.offline {
            return Err(BuildError::Expired { url, until: release.valid_until.unwrap_or_default() });
        }
        if !self.request.offline {
            self.cache.write("release", &name, &bytes)?;
        }
        Ok(release)
    }

    fn add_packages(
        &self,
        source: &Source,
        release: &Release,
        component: &str,
        index: &mut Index,
    ) -> Result<(), BuildError> {
        let base = format!("{component}/binary-amd64/Packages");
        let found = [".xz", ".gz", ""]
            .iter()
            .find_map(|extension| Some((*extension, release.try_find(&format!("{base}{extension}"))?)));
        // A component that has no packages for this architecture has no index.
        let Some((extension, checksum)) = found else { return Ok(()) };
        let url = source.dist_url(&format!("{base}{extension}"));
        let path = self.archive(checksum);
        if !has_checksum(&path, checksum)? {
            if self.request.offline {
                return Err(BuildError::Offline(url));
            }
            self.progress.stage("fetching package lists", Some(checksum.bytes));
            self.client.download(&url, checksum, &path, self.progress)?;
        }
        let file = std::fs::File::open(&path).at("cannot read", &path)?;
        match extension {
            ".xz" => index.add(
                &url,
                &source.url,
                &source.suite,
                BufReader::new(liblzma::read::XzDecoder::new_multi_decoder(file)),
            ),
            ".gz" => index.add(
                &url,
                &source.url,
                &source.suite,
                BufReader::new(flate2::read::MultiGzDecoder::new(file)),
            ),
            _ => index.add(&url, &source.url, &source.suite, BufReader::new(file)),
        }
    }
}

/// The packages that hold the newest kernel and its modules; the image itself comes first.
fn kernel_packages(index: &Index) -> Result<Vec<&Package>, BuildError> {
    let meta = KERNEL_PACKAGES.iter().find_map(|name| index.try_find(name));
    let meta = meta.map_or_else(|| index.find(KERNEL_PACKAGES[0]), Ok)?;
    let mut found: Vec<&Package> = Vec::new();
    let mut queue = vec![meta];
    while let Some(package) = queue.pop() {
        for relation in relations(&package.depends).iter().filter_map(|alternatives| alternatives.first()) {
            let is_kernel =
                relation.name.starts_with("linux-image-") || relation.name.starts_with("linux-modules-");
            if is_kernel && !found.iter().any(|known| known.name == relation.name) {
                let needed = index.find(relation.name)?;
                found.push(needed);
                queue.push(needed);
            }
        }
    }
    if found.is_empty() {
        return Err(malformed(format!("package {}", meta.name), "it depends on no linux-image package"));
    }
    found.sort_by_key(|package| (!package.name.starts_with("linux-image-"), package.name.clone()));
    Ok(found)
}

/// Contents of the first of `paths` that the package has.
fn file_of(package: &std::path::Path, paths: &[&str]) -> Result<Vec<u8>, BuildError> {
    let mut found = None;
    deb::for_each(package, |entry, reader| {
        if paths.contains(&entry.path.as_str())
            && matches!(entry.kind, deb::EntryKind::File(bytes) if bytes < 64 << 20)
        {
            found = Some(deb::contents(&entry, reader)?);
        }
        Ok(())
    })?;
    found.ok_or_else(|| malformed(package.display().to_string(), format!("it has no {}", paths[0])))
}

fn write_synced(path: &std::path::Path, bytes: &[u8]) -> Result<(), BuildError> {
    let mut file = std::fs::File::create(path).at("cannot write", path)?;
    std::io::Write::write_all(&mut file, bytes).and_then(|()| file.sync_all()).at("cannot write", path)
}
