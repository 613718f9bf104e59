//! A pack of nonsense, deltas among it: two bytes say where the second object is, the rest is the pack behind its header.
//! Its objects are read through a repository, whole and as blobs.
#![no_main]

use std::path::Path;
use std::sync::OnceLock;

use datakit_git::{Backend, HashKind, ObjectId, Options, Repository, testing};
use libfuzzer_sys::fuzz_target;

fn folder() -> &'static tempfile::TempDir {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = tempfile::tempdir().expect("a folder for the repository");
        drop(Repository::open_or_init(folder.path(), Options::default()).expect("an empty repository"));
        folder
    })
}

fuzz_target!(|bytes: &[u8]| {
    let Some((second, entries)) = bytes.split_first_chunk::<2>() else { return };
    let ids = [0x11, 0x22].map(|byte| ObjectId::from_bytes_or_panic(&[byte; 20]));
    let places = [(ids[0], 12), (ids[1], u32::from(u16::from_be_bytes(*second)))];
    let trailer = ObjectId::from_bytes_or_panic(&[0x33; 20]);
    let index = testing::index(HashKind::Sha1, &places, trailer).expect("two objects");
    let pack = [b"PACK\0\0\0\x02\0\0\0\x02", entries, trailer.as_slice()].concat();
    let path: &Path = &folder().path().join("objects/pack/pack-fuzz");
    std::fs::write(path.with_extension("pack"), pack).expect("the disk has room");
    std::fs::write(path.with_extension("idx"), index).expect("the disk has room");
    let options = Options { object_bytes_max: 16 << 20, ..Options::default() };
    let repository = Repository::open(folder().path(), options).expect("it is a repository");
    for id in ids {
        let _ = repository.header(id);
        let read = repository.read(id);
        assert!(read.is_err(), "no content has this id");
        assert!(read.is_err_and(|error| error.to_string().contains(&id.to_string())), "it names the object");
        let _ = repository.open_blob(id).map(|mut blob| blob.read_at(0, &mut [0; 4096]));
    }
});
