//! Clients that send anything in any order: no panic, no way out of the share, always an answer.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use p9p::Session;
use p9p::message::{Dialect, Fid, NumericUser, Reply, Request, Tag, WalkNames};
use p9p::stat::{LockKind, LockRange, SetAttributes, Time};
use p9p::wire::Payload;
use proptest::prelude::*;
use proptest::sample::select;

use crate::share::session;

const SECRET: &[u8] = b"the canary sings";
const NAMES: [&[u8]; 14] = [
    b"a",
    b"b",
    b"c",
    b"dir",
    b"file",
    b"up",
    b"out",
    b"..",
    b".",
    b"",
    b"../canary",
    b"canary",
    b"x/y",
    b"nul\0",
];

const XATTR_NAMES: [&[u8]; 4] = [b"", b"user.a", b"user.\0", b"security.b"];

/// A share with links that lead out of it, and what they lead to beside it.
struct Cage {
    directory: tempfile::TempDir,
    session: Session,
}

impl Cage {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let share = directory.path().join("share");
        fs::create_dir_all(share.join("dir")).unwrap();
        fs::write(share.join("file"), b"content").unwrap();
        fs::write(directory.path().join("canary"), SECRET).unwrap();
        symlink("..", share.join("up")).unwrap();
        symlink(directory.path().join("canary"), share.join("out")).unwrap();
        let session = session(&share, false);
        Self { directory, session }
    }

    fn canary(&self) -> PathBuf {
        self.directory.path().join("canary")
    }

    /// Sends a request and checks what comes back.
    fn send(&self, request: &[u8]) -> Result<(), TestCaseError> {
        let mut reply = vec![0; 16_384];
        let bytes = self.session.handle(request, &mut reply);
        let reply = &reply[..bytes];
        prop_assert!(Reply::parse(reply, Dialect::Linux).is_ok(), "{request:?} was answered {reply:?}");
        prop_assert!(
            !reply.windows(SECRET.len()).any(|window| window == SECRET),
            "{request:?} read the canary"
        );
        Ok(())
    }

    /// That all outside the share is as it was.
    fn check(&self, before: &fs::Metadata) -> Result<(), TestCaseError> {
        let mut beside: Vec<_> =
            fs::read_dir(self.directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        beside.sort_unstable();
        prop_assert_eq!(beside, ["canary", "share"]);
        prop_assert_eq!(fs::read(self.canary()).unwrap(), SECRET);
        let after = fs::metadata(self.canary()).unwrap();
        let state =
            |of: &fs::Metadata| (of.ino(), of.mode(), of.uid(), of.gid(), of.ctime(), of.ctime_nsec());
        prop_assert_eq!(state(before), state(&after));
        Ok(())
    }
}

fn fid() -> impl Strategy<Value = Fid> {
    prop_oneof![9 => (0u32..6).prop_map(Fid), 1 => any::<u32>().prop_map(Fid)]
}

fn name() -> impl Strategy<Value = &'static [u8]> {
    select(&NAMES[..])
}

/// Small numbers, mostly.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..5000, 1 => any::<u64>()]
}

fn flags() -> impl Strategy<Value = u32> {
    prop_oneof![4 => select(&[0u32, 1, 2, 0o102, 0o1002, 0o2001, 0o200_000, 0o300][..]), 1 => any::<u32>()]
}

fn walking() -> impl Strategy<Value = Request<'static>> {
    let names = proptest::collection::vec(name(), 0..4);
    prop_oneof![
        3 => (fid(), fid(), names).prop_map(|(fid, new_fid, names)| {
            Request::Walk { fid, new_fid, names: WalkNames::from_slice(&names).unwrap() }
        }),
        1 => (fid(), name()).prop_map(|(fid, tree)| {
            Request::Attach { fid, afid: Fid::NONE, user: b"", tree, numeric_user: NumericUser(0) }
        }),
        1 => fid().prop_map(|fid| Request::Clunk { fid }),
        1 => (fid(), any::<u64>()).prop_map(|(fid, mask)| Request::Getattr { fid, mask }),
        1 => fid().prop_map(|fid| Request::Statfs { fid }),
        1 => fid().prop_map(|fid| Request::Readlink { fid }),
    ]
}

fn changing() -> impl Strategy<Value = Request<'static>> {
    let mode = || any::<u32>().prop_map(|mode| mode & 0o777 | 0o700);
    prop_oneof![
        (fid(), name(), flags(), mode())
            .prop_map(|(fid, name, flags, mode)| { Request::Lcreate { fid, name, flags, mode, gid: 0 } }),
        (fid(), name(), mode()).prop_map(|(fid, name, mode)| Request::Mkdir { fid, name, mode, gid: 0 }),
        (fid(), name(), name()).prop_map(|(fid, name, target)| Request::Symlink {
            fid,
            name,
            target,
            gid: 0
        }),
        (fid(), name(), any::<u32>()).prop_map(|(fid, name, mode)| {
            Request::Mknod { fid, name, mode: mode & 0o170_700 | 0o600, major: 1, minor: 3, gid: 0 }
        }),
        (fid(), fid(), name()).prop_map(|(directory, fid, name)| Request::Link { directory, fid, name }),
        (fid(), fid(), name()).prop_map(|(fid, directory, name)| Request::Rename { fid, directory, name }),
        (fid(), name(), fid(), name()).prop_map(|(old_directory, old_name, new_directory, new_name)| {
            Request::Renameat { old_directory, old_name, new_directory, new_name }
        }),
        (fid(), name(), select(&[0u32, 0x200, 1][..]))
            .prop_map(|(directory, name, flags)| { Request::Unlinkat { directory, name, flags } }),
        fid().prop_map(|fid| Request::Remove { fid }),
        (fid(), any::<u32>(), number(), number()).prop_map(|(fid, valid, size, seconds)| {
            let time = Time { seconds, nanoseconds: seconds };
            let change = SetAttributes {
                valid: valid & 0x1ff,
                mode: 0o755,
                size,
                atime: time,
                mtime: time,
                ..Default::default()
            };
            Request::Setattr { fid, change }
        }),
    ]
}

fn using() -> impl Strategy<Value = Request<'static>> {
    prop_oneof![
        (fid(), flags()).prop_map(|(fid, flags)| Request::Lopen { fid, flags }),
        (fid(), number(), any::<u32>()).prop_map(|(fid, offset, count)| Request::Read { fid, offset, count }),
        (fid(), number()).prop_map(|(fid, offset)| Request::Write {
            fid,
            offset: offset % 100_000,
            payload: Payload(b"bytes")
        }),
        (fid(), number(), number())
            .prop_map(|(fid, offset, count)| { Request::Readdir { fid, offset, count: count as u32 } }),
        (fid(), any::<u32>()).prop_map(|(fid, data_only)| Request::Fsync { fid, data_only }),
        (fid(), 0u8..5, number(), number()).prop_map(|(fid, kind, start, length)| {
            let range = LockRange { start, length, process: 1, client: b"c" };
            Request::Lock { fid, kind: LockKind(kind), flags: 0, range }
        }),
        (fid(), 0u8..5, number(), number()).prop_map(|(fid, kind, start, length)| {
            Request::Getlock {
                fid,
                kind: LockKind(kind),
                range: LockRange { start, length, process: 2, client: b"" },
            }
        }),
        (fid(), fid(), select(&XATTR_NAMES[..]))
            .prop_map(|(fid, new_fid, name)| { Request::Xattrwalk { fid, new_fid, name } }),
        (fid(), number(), any::<u32>())
            .prop_map(|(fid, size, flags)| { Request::Xattrcreate { fid, name: b"user.a", size, flags } }),
        any::<u16>().prop_map(|tag| Request::Flush { old_tag: Tag(tag) }),
    ]
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    let request = prop_oneof![4 => walking(), 4 => changing(), 4 => using()];
    prop_oneof![
        12 => request.prop_map(|request| {
            let mut buffer = [0; 1024];
            let bytes = request.emit(Tag(1), &mut buffer, Dialect::Linux).unwrap();
            buffer[..bytes].to_vec()
        }),
        1 => proptest::collection::vec(any::<u8>(), 0..80),
        1 => (any::<u8>(), proptest::collection::vec(any::<u8>(), 0..80)).prop_map(|(code, body)| {
            [&(7 + body.len() as u32).to_le_bytes()[..], &[code, 1, 0], &body].concat()
        }),
    ]
}

fn begin(cage: &Cage) -> Result<(), TestCaseError> {
    let mut buffer = [0; 64];
    let version = Request::Version { msize: 16_384, version: b"9P2000.L" };
    let bytes = version.emit(Tag::NONE, &mut buffer, Dialect::Linux).unwrap();
    cage.send(&buffer[..bytes])?;
    for fid in 0..3 {
        let attach = Request::Attach {
            fid: Fid(fid),
            afid: Fid::NONE,
            user: b"",
            tree: b"",
            numeric_user: NumericUser(0),
        };
        let bytes = attach.emit(Tag(1), &mut buffer, Dialect::Linux).unwrap();
        cage.send(&buffer[..bytes])?;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_messages_is_answered_and_stays_inside(messages in proptest::collection::vec(message(), 1..80)) {
        let cage = Cage::new();
        let before = fs::metadata(cage.canary()).unwrap();
        begin(&cage)?;
        for message in &messages {
            cage.send(message)?;
        }
        cage.check(&before)?;
    }
}

#[test]
fn a_directory_that_turns_into_a_link_meanwhile_leads_nowhere() {
    let cage = Cage::new();
    let share = cage.directory.path().join("share");
    begin(&cage).unwrap();
    std::thread::scope(|scope| {
        let swapping = scope.spawn(|| swap_for_a_link(&share));
        let names = WalkNames::from_slice(&[&b"trap"[..], b"canary"]).unwrap();
        let (mut request, mut reply) = ([0; 64], [0; 256]);
        let walk = Request::Walk { fid: Fid(0), new_fid: Fid(9), names };
        let bytes = walk.emit(Tag(1), &mut request, Dialect::Linux).unwrap();
        while !swapping.is_finished() {
            let answered = cage.session.handle(&request[..bytes], &mut reply);
            if let (_, Reply::Walk { qids }) = Reply::parse(&reply[..answered], Dialect::Linux).unwrap() {
                assert!(qids.len() < 2, "walked through the link");
            }
        }
    });
}

fn swap_for_a_link(share: &Path) {
    for _ in 0..2_000 {
        fs::create_dir(share.join("trap")).unwrap();
        fs::remove_dir(share.join("trap")).unwrap();
        symlink("..", share.join("trap")).unwrap();
        fs::remove_file(share.join("trap")).unwrap();
    }
}
