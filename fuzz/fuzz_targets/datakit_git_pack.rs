//! A pack of nonsense, deltas among it: two bytes say where the second object is, the rest is the pack behind its header.
//! Its objects are read through a repository, whole and as blobs; then it is put together with another pack.
#![no_main]

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use datakit_git::{Backend, HashKind, ObjectId, Options, Repository, testing};
use libfuzzer_sys::fuzz_target;

/// One repository for all inputs, in memory where that can be had.
struct World {
    folder: tempfile::TempDir,
    repository: Repository,
}

fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
        let options = Options { object_bytes_max: 16 << 20, ..Options::default() };
        let repository = Repository::open_or_init(folder.path(), options).expect("an empty repository");
        World { folder, repository }
    })
}

fuzz_target!(|bytes: &[u8]| {
    static INPUTS: AtomicU64 = AtomicU64::new(0);
    let Some((second, entries)) = bytes.split_first_chunk::<2>() else { return };
    let World { folder, repository } = world();
    // Names that were not asked for before, so that the repository looks at its packs anew.
    let input = INPUTS.fetch_add(1, Ordering::Relaxed);
    let ids = [1, 2].map(|n| {
        let mut id = [0; 20];
        id[..8].copy_from_slice(&(2 * input + n).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        id[12..].copy_from_slice(&(2 * input + n).to_be_bytes());
        ObjectId::from_bytes_or_panic(&id)
    });
    let places = [(ids[0], 12), (ids[1], u32::from(u16::from_be_bytes(*second)))];
    let trailer = ObjectId::from_bytes_or_panic(&[0x33; 20]);
    let index = testing::index(HashKind::Sha1, &places, trailer).expect("two objects");
    let pack = [b"PACK\0\0\0\x02\0\0\0\x02", entries, trailer.as_slice()].concat();
    let path: PathBuf = folder.path().join(format!("objects/pack/pack-fuzz-{input}"));
    std::fs::write(path.with_extension("pack"), pack).expect("there is room");
    std::fs::write(path.with_extension("idx"), index).expect("there is room");
    for id in ids {
        let _ = repository.header(id);
        let read = repository.read(id);
        assert!(read.is_err(), "no content has this id");
        assert!(read.is_err_and(|error| error.to_string().contains(&id.to_string())), "it names the object");
        let _ = repository.open_blob(id).map(|mut blob| blob.read_at(0, &mut [0; 4096]));
    }
    let _ = testing::concatenate(HashKind::Sha1, &[path.clone()], &folder.path().join("together"));
    for extension in ["idx", "pack"] {
        std::fs::remove_file(path.with_extension(extension)).expect("it was written");
    }
});
