//! Messages: bytes known from the manuals, round trips of every type, and bytes that are no message.

use super::*;
use crate::stat::DirectoryEntry;
use proptest::prelude::*;

/// Type codes that a dialect has, by its manual.
const CLASSIC_REQUESTS: [u8; 14] = [100, 102, 104, 108, 110, 112, 114, 116, 118, 120, 122, 124, 126, 0];
const LINUX_REQUESTS: [u8; 29] = [
    8, 12, 14, 16, 18, 20, 22, 24, 26, 30, 32, 40, 50, 52, 54, 70, 72, 74, 76, 100, 102, 104, 108, 110, 116,
    118, 120, 122, 0,
];

fn requests_of(dialect: Dialect) -> &'static [u8] {
    let all: &[u8] = if dialect == Dialect::Linux { &LINUX_REQUESTS } else { &CLASSIC_REQUESTS };
    &all[..all.len() - 1]
}

fn replies_of(dialect: Dialect) -> Vec<u8> {
    let error = if dialect == Dialect::Linux { 7 } else { 107 };
    requests_of(dialect).iter().map(|code| code + 1).chain([error]).collect()
}

fn frame(code: u8, tag: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = (HEADER_BYTES as u32 + body.len() as u32).to_le_bytes().to_vec();
    bytes.push(code);
    bytes.extend_from_slice(&tag.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Emits to exactly `golden`, which parses back to the same.
fn check_request(request: &Request<'_>, dialect: Dialect, golden: &[u8]) {
    let mut buffer = [0; 512];
    let bytes = request.emit(Tag(0x0102), &mut buffer, dialect).unwrap();
    assert_eq!(&buffer[..bytes], golden);
    assert_eq!(Request::parse(golden, dialect).unwrap(), (Tag(0x0102), request.clone()));
}

#[test]
fn version_has_the_bytes_of_the_manual() {
    let golden = b"\x15\0\0\0\x64\x02\x01\0\xd0\x07\0\x08\x009P2000.L";
    check_request(&Request::Version { msize: 512_000, version: b"9P2000.L" }, Dialect::Linux, golden);
}

#[test]
fn walk_has_the_bytes_of_the_manual() {
    let names = WalkNames::from_slice(&[&b"usr"[..], b"bin"]).unwrap();
    let golden = b"\x1b\0\0\0\x6e\x02\x01\x05\0\0\0\x06\0\0\0\x02\0\x03\0usr\x03\0bin";
    check_request(&Request::Walk { fid: Fid(5), new_fid: Fid(6), names }, Dialect::Linux, golden);
}

#[test]
fn lock_has_its_flags_between_kind_and_range() {
    let range = LockRange { start: 1, length: 2, process: 3, client: b"c" };
    let golden = b"\x27\0\0\0\x34\x02\x01\x09\0\0\0\x01\x01\0\0\0\x01\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\x03\0\0\0\x01\0c";
    check_request(
        &Request::Lock { fid: Fid(9), kind: LockKind::WRITE, flags: 1, range },
        Dialect::Linux,
        golden,
    );
}

#[test]
fn attach_has_a_numeric_user_except_in_plan_9() {
    let attach =
        |numeric_user| Request::Attach { fid: Fid(1), afid: Fid::NONE, user: b"u", tree: b"", numeric_user };
    let plan9 = b"\x14\0\0\0\x68\x02\x01\x01\0\0\0\xff\xff\xff\xff\x01\0u\0\0";
    check_request(&attach(NumericUser::NONE), Dialect::Plan9, plan9);
    let unix = b"\x18\0\0\0\x68\x02\x01\x01\0\0\0\xff\xff\xff\xff\x01\0u\0\0\xe8\x03\0\0";
    check_request(&attach(NumericUser(1000)), Dialect::Unix, unix);
}

#[test]
fn the_stat_of_9p2000_is_counted_twice() {
    let stat = Wrapped(Stat { name: b"n", length: 3, ..Stat::default() });
    let mut buffer = [0; 128];
    let bytes = Reply::Stat { stat }.emit(Tag(1), &mut buffer, Dialect::Plan9).unwrap();
    // type dev qid mode atime mtime length are 39 bytes, four strings of which one has a byte 9.
    assert_eq!((bytes, &buffer[7..11]), (59, &[50, 0, 48, 0][..]));
}

#[test]
fn the_answer_to_getattr_is_160_bytes() {
    let reply = Reply::Getattr { attributes: Attributes { mode: 0o100_644, ..Attributes::default() } };
    let mut buffer = [0xff; 200];
    assert_eq!(reply.emit(Tag(1), &mut buffer, Dialect::Linux), Ok(160));
    // size[4] type[1] tag[2] valid[8] qid[13], then the mode.
    assert_eq!(&buffer[28..32], &0o100_644u32.to_le_bytes());
}

#[test]
fn an_entry_of_a_directory_is_24_bytes_and_its_name() {
    let mut buffer = [0; 64];
    let mut writer = Writer::new(&mut buffer, Dialect::Linux);
    let entry = DirectoryEntry { qid: Qid::default(), offset: 7, kind: 4, name: b"dir" };
    entry.emit(&mut writer).unwrap();
    assert_eq!(writer.len(), 27);
    assert_eq!(&buffer[13..27], b"\x07\0\0\0\0\0\0\0\x04\x03\0dir");
}

#[test]
fn every_type_of_a_dialect_is_known_and_no_other() {
    let zeros = [0; 200];
    for dialect in Dialect::ALL {
        for code in 0..=255 {
            let unknown = WireError::UnknownType { code, dialect };
            let request = Request::parse_fields(code, &mut Reader::new(&zeros, dialect));
            assert_eq!(request != Err(unknown), requests_of(dialect).contains(&code), "{dialect:?} {code}");
            let reply = Reply::parse_fields(code, &mut Reader::new(&zeros, dialect));
            assert_eq!(reply != Err(unknown), replies_of(dialect).contains(&code), "{dialect:?} {code}");
        }
    }
}

#[test]
fn a_wrong_size_a_cut_and_a_tail_are_refused() {
    let good = frame(120, 1, &[0, 0, 0, 0]);
    assert!(Request::parse(&good, Dialect::Linux).is_ok());
    assert_eq!(
        Request::parse(&good[..10], Dialect::Linux),
        Err(WireError::SizeMismatch { said: 11, actual: 10 })
    );
    assert_eq!(
        Request::parse(&frame(120, 1, &[0; 3]), Dialect::Linux),
        Err(WireError::Truncated { missing: 1 })
    );
    assert_eq!(
        Request::parse(&frame(120, 1, &[0; 6]), Dialect::Linux),
        Err(WireError::TrailingBytes { extra: 2 })
    );
    assert_eq!(Request::parse(&[], Dialect::Linux), Err(WireError::Truncated { missing: 4 }));
}

#[test]
fn a_walk_of_17_names_is_refused() {
    let mut body = vec![0; 8];
    body.extend_from_slice(&17u16.to_le_bytes());
    body.extend_from_slice(&[0; 34]);
    assert_eq!(
        Request::parse(&frame(110, 1, &body), Dialect::Linux),
        Err(WireError::TooManyNames { count: 17 })
    );
}

#[test]
fn a_message_that_does_not_fit_says_so() {
    let reply = Reply::Readlink { target: &[b'x'; 100] };
    assert!(matches!(reply.emit(Tag(1), &mut [0; 64], Dialect::Linux), Err(WireError::NoRoom { .. })));
    let reply = Reply::Readlink { target: &[b'x'; 70_000] };
    let too_long = WireError::StringTooLong { bytes: 70_000 };
    assert_eq!(reply.emit(Tag(1), &mut vec![0; 100_000], Dialect::Linux), Err(too_long));
}

/// Bytes in which lengths tend to be short, so that most types find their fields in them.
fn fields() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![6 => Just(0u8), 3 => 1u8..8, 1 => any::<u8>()];
    proptest::collection::vec(byte, 0..400)
}

fn dialect() -> impl Strategy<Value = Dialect> {
    proptest::sample::select(&Dialect::ALL[..])
}

proptest! {
    #[test]
    fn requests_survive_a_round_trip(bytes in fields(), dialect in dialect(), tag: u16) {
        let mut buffer = [0; 1024];
        for code in requests_of(dialect) {
            if let Ok(request) = Request::parse_fields(*code, &mut Reader::new(&bytes, dialect)) {
                let len = request.emit(Tag(tag), &mut buffer, dialect).unwrap();
                prop_assert_eq!(Request::parse(&buffer[..len], dialect), Ok((Tag(tag), request)));
            }
        }
    }

    #[test]
    fn replies_survive_a_round_trip(bytes in fields(), dialect in dialect(), tag: u16) {
        let mut buffer = [0; 1024];
        for code in replies_of(dialect) {
            if let Ok(reply) = Reply::parse_fields(code, &mut Reader::new(&bytes, dialect)) {
                let len = reply.emit(Tag(tag), &mut buffer, dialect).unwrap();
                prop_assert_eq!(Reply::parse(&buffer[..len], dialect), Ok((Tag(tag), reply)));
            }
        }
    }

    #[test]
    fn stats_survive_a_round_trip(name in "[a-z]{0,20}", extension in "[a-z]{0,9}", mode: u32, numeric_user: u32) {
        let stat = Stat {
            name: name.as_bytes(), extension: extension.as_bytes(), mode, numeric_user, ..Stat::default()
        };
        let reply = Reply::Stat { stat: Wrapped(stat) };
        let mut buffer = [0; 256];
        let len = reply.emit(Tag(1), &mut buffer, Dialect::Unix).unwrap();
        prop_assert_eq!(Reply::parse(&buffer[..len], Dialect::Unix), Ok((Tag(1), reply)));
    }

    #[test]
    fn any_bytes_are_a_message_or_an_error(code: u8, body in proptest::collection::vec(any::<u8>(), 0..300), dialect in dialect()) {
        let bytes = frame(code, 1, &body);
        let mut buffer = [0; 1024];
        if let Ok((tag, request)) = Request::parse(&bytes, dialect) {
            let len = request.emit(tag, &mut buffer, dialect).unwrap();
            prop_assert_eq!(&buffer[..len], &bytes[..]);
        }
        if let Ok((tag, reply)) = Reply::parse(&bytes, dialect) {
            let len = reply.emit(tag, &mut buffer, dialect).unwrap();
            prop_assert_eq!(&buffer[..len], &bytes[..]);
        }
    }

    #[test]
    fn any_unframed_bytes_are_refused_or_parsed(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        for dialect in Dialect::ALL {
            let _ = Request::parse(&bytes, dialect);
            let _ = Reply::parse(&bytes, dialect);
        }
    }
}
