//! Versions, tags, flush and requests side by side.

use std::collections::VecDeque;
use std::fs;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use p9p::client::{Client, Direct, Stream};
use p9p::errno::Errno;
use p9p::filesystem::{Answer, Attach, Cancel, Node, OpenFile, OpenFlags};
use p9p::message::{Dialect, Fid, NumericUser, Reply, Request, Tag, WalkNames};
use p9p::qid::Qid;
use p9p::stat::Attributes;
use p9p::transport::serve;
use p9p::{Filesystem, HostDir, Session};

use crate::share::{MSIZE, Share, errno, session};

fn message(tag: u16, request: &Request<'_>) -> Vec<u8> {
    let mut buffer = vec![0; 4096];
    let bytes = request.emit(Tag(tag), &mut buffer, Dialect::Linux).unwrap();
    buffer.truncate(bytes);
    buffer
}

fn ask(session: &Session, request: &[u8]) -> Vec<u8> {
    let mut reply = vec![0; 8192];
    let bytes = session.handle(request, &mut reply);
    reply.truncate(bytes);
    reply
}

fn refused(session: &Session, request: &[u8]) -> Errno {
    match Reply::parse(&ask(session, request), Dialect::Linux).unwrap().1 {
        Reply::Lerror { errno } => Errno(errno),
        other => panic!("{other:?}"),
    }
}

fn begin(session: &Session) {
    ask(session, &message(0xffff, &Request::Version { msize: 8192, version: b"9P2000.L" }));
    let attach =
        Request::Attach { fid: Fid(0), afid: Fid::NONE, user: b"", tree: b"", numeric_user: NumericUser(0) };
    ask(session, &message(1, &attach));
}

#[test]
fn the_version_that_both_speak_is_agreed_on() {
    let share = Share::new();
    assert_eq!(share.client.msize(), MSIZE);
    let ask_version = |msize, version| {
        let reply = ask(&share.session, &message(0xffff, &Request::Version { msize, version }));
        match Reply::parse(&reply, Dialect::Linux).unwrap() {
            (Tag::NONE, Reply::Version { msize, version }) => (msize, version.to_vec()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ask_version(u32::MAX, b"9P2000.L"), (MSIZE, b"9P2000.L".to_vec()));
    assert_eq!(ask_version(8192, b"9P2000.L"), (8192, b"9P2000.L".to_vec()));
    assert_eq!(ask_version(8192, b"9P3000").1, b"unknown");
    assert_eq!(ask_version(100, b"9P2000.L").1, b"unknown");
}

#[test]
fn a_new_version_forgets_all_fids() {
    let mut share = Share::new();
    share.client = Client::connect(Direct::new(Arc::clone(&share.session)), MSIZE).unwrap();
    assert_eq!(share.session.fid_count(), 0);
    let root = share.root;
    assert_eq!(errno(share.client.getattr(root)), Errno::EBADF);
}

#[test]
fn nothing_is_answered_before_the_version() {
    let directory = tempfile::tempdir().unwrap();
    let session = session(directory.path(), false);
    assert_eq!(refused(&session, &message(1, &Request::Clunk { fid: Fid(0) })), Errno::EPROTO);
}

#[test]
fn malformed_messages_are_answered_with_their_tag() {
    let share = Share::new();
    for bytes in
        [&b"\x0b\0\0\0\x78\x07\0\0\0\0"[..], b"\x08\0\0\0\xfe\x07\0\0", b"\xff\xff\xff\xff\x78\x07\0"]
    {
        let reply = ask(&share.session, bytes);
        assert_eq!(Reply::parse(&reply, Dialect::Linux), Ok((Tag(7), Reply::Lerror { errno: 22 })));
    }
}

#[test]
fn a_reply_that_does_not_fit_is_an_error_that_does() {
    let share = Share::new();
    begin(&share.session);
    let request = message(5, &Request::Getattr { fid: Fid(0), mask: u64::MAX });
    let mut reply = [0; 40];
    let bytes = share.session.handle(&request, &mut reply);
    assert_eq!(Reply::parse(&reply[..bytes], Dialect::Linux), Ok((Tag(5), Reply::Lerror { errno: 90 })));
    assert_eq!(share.session.handle(&request, &mut []), 0);
}

#[test]
fn reads_are_as_long_as_the_reply_has_room() {
    let mut share = Share::new();
    fs::write(share.host("f"), [b'x'; 1000]).unwrap();
    let fid = share.fid("f");
    share.client.open(fid, OpenFlags::RDONLY).unwrap();
    let request = message(5, &Request::Read { fid, offset: 0, count: 1000 });
    let mut reply = [0; 111];
    assert_eq!(share.session.handle(&request, &mut reply), 111);
    assert_eq!(&reply[7..], [&100u32.to_le_bytes()[..], &[b'x'; 100]].concat());
}

#[test]
fn two_threads_work_side_by_side() {
    let directory = tempfile::tempdir().unwrap();
    let session = Arc::new(session(directory.path(), false));
    let mut first = Client::connect(Direct::new(Arc::clone(&session)), MSIZE).unwrap();
    let root = first.attach(b"", 0, b"").unwrap();
    let work = |worker: u32| {
        let mut reply = vec![0; MSIZE as usize];
        let mut call = |request: Request<'_>| {
            let bytes = session.handle(&message(worker as u16, &request), &mut reply);
            let (tag, reply) = Reply::parse(&reply[..bytes], Dialect::Linux).unwrap();
            assert_eq!(tag, Tag(worker as u16));
            assert!(!matches!(reply, Reply::Lerror { .. }), "{request:?} {reply:?}");
        };
        for round in 0..300u32 {
            let fid = Fid(1000 * worker + round % 7);
            let name = format!("{worker}-{round}");
            call(Request::Walk { fid: root, new_fid: fid, names: WalkNames::new() });
            call(Request::Lcreate { fid, name: name.as_bytes(), flags: 2, mode: 0o600, gid: 0 });
            let payload = p9p::wire::Payload(name.as_bytes());
            call(Request::Write { fid, offset: 0, payload });
            call(Request::Getattr { fid, mask: 0x7ff });
            call(Request::Clunk { fid });
            if round % 2 == 1 {
                call(Request::Unlinkat { directory: root, name: name.as_bytes(), flags: 0 });
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| work(1));
        scope.spawn(|| work(2));
    });
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 300);
    assert_eq!(fs::read(directory.path().join("2-298")).unwrap(), b"2-298");
    assert_eq!(session.fid_count(), 1);
}

#[test]
fn a_session_over_a_socket_serves_until_the_client_hangs_up() {
    let directory = tempfile::tempdir().unwrap();
    let session = Session::new(Arc::new(HostDir::new(directory.path(), false).unwrap()), MSIZE);
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        let served = scope.spawn(|| serve(&session, theirs.try_clone().unwrap(), &theirs, 4));
        let mut client = Client::connect(Stream(&ours), MSIZE).unwrap();
        let root = client.attach(b"", 0, b"").unwrap();
        client.create(root, b"f", OpenFlags::RDWR, 0o600).unwrap();
        client.write_all(root, 0, &vec![7; 2_000_000]).unwrap();
        assert_eq!(client.read_to_end(root).unwrap(), vec![7; 2_000_000]);
        ours.shutdown(std::net::Shutdown::Both).unwrap();
        served.join().unwrap().unwrap();
    });
    assert_eq!(session.fid_count(), 0);
}

#[test]
fn a_flush_ends_a_waiting_read_and_is_answered_after_it() {
    let stream = Arc::new(Quiet::default());
    let session = Arc::new(Session::new(Arc::new(QuietTree(Arc::clone(&stream))), MSIZE));
    begin(&session);
    ask(&session, &message(1, &Request::Lopen { fid: Fid(0), flags: 0 }));

    let order = Arc::new(Mutex::new(Vec::new()));
    let answer = |request: Vec<u8>| {
        let (session, order) = (Arc::clone(&session), Arc::clone(&order));
        let ticket = session.accept(&request);
        thread::spawn(move || {
            let mut reply = vec![0; 4096];
            let bytes = session.answer(&ticket, &request, &mut reply);
            order.lock().unwrap().push(reply[4..bytes].to_vec());
            drop(ticket);
        })
    };
    let read = answer(message(10, &Request::Read { fid: Fid(0), offset: 0, count: 100 }));
    stream.wait_for_reader();
    assert_eq!(
        ask(&session, &message(11, &Request::Getattr { fid: Fid(0), mask: 0x7ff }))[4],
        25,
        "others go on"
    );
    let flush = answer(message(12, &Request::Flush { old_tag: Tag(10) }));
    read.join().unwrap();
    flush.join().unwrap();
    let order = order.lock().unwrap();
    assert_eq!(order[0][..], [7, 10, 0, 4, 0, 0, 0], "the read fails with EINTR");
    assert_eq!(order[1][..], [109, 12, 0]);
}

#[test]
fn a_flush_of_nothing_is_answered_at_once() {
    let share = Share::new();
    let reply = ask(&share.session, &message(3, &Request::Flush { old_tag: Tag(99) }));
    assert_eq!(Reply::parse(&reply, Dialect::Linux), Ok((Tag(3), Reply::Flush {})));
    let own = ask(&share.session, &message(3, &Request::Flush { old_tag: Tag(3) }));
    assert_eq!(Reply::parse(&own, Dialect::Linux), Ok((Tag(3), Reply::Flush {})));
}

#[test]
fn hanging_up_ends_a_waiting_read() {
    let stream = Arc::new(Quiet::default());
    let session = Session::new(Arc::new(QuietTree(Arc::clone(&stream))), MSIZE);
    let (ours, theirs) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        let served = scope.spawn(|| serve(&session, theirs.try_clone().unwrap(), &theirs, 2));
        let mut client = Client::connect(Stream(&ours), MSIZE).unwrap();
        let root = client.attach(b"", 0, b"").unwrap();
        client.open(root, OpenFlags::RDONLY).unwrap();
        std::io::Write::write_all(&mut &ours, &message(9, &Request::Read { fid: root, offset: 0, count: 9 }))
            .unwrap();
        stream.wait_for_reader();
        ours.shutdown(std::net::Shutdown::Both).unwrap();
        // Writing the last reply may find the socket closed.
        let _ = served.join().unwrap();
    });
}

/// A file whose reads wait for something that never comes.
#[derive(Default)]
struct Quiet {
    state: Arc<(Mutex<VecDeque<&'static str>>, Condvar)>,
}

impl Quiet {
    fn wait_for_reader(&self) {
        let (events, changed) = &*self.state;
        drop(changed.wait_while(events.lock().unwrap(), |events| events.is_empty()).unwrap());
    }
}

impl OpenFile for Quiet {
    fn read(&self, _: u64, _: &mut [u8], cancel: &Cancel) -> Answer<usize> {
        let state = Arc::clone(&self.state);
        cancel.on_cancel(move || {
            state.0.lock().unwrap().push_back("cancelled");
            state.1.notify_all();
        });
        let (events, changed) = &*self.state;
        let mut events = events.lock().unwrap();
        events.push_back("reading");
        changed.notify_all();
        drop(changed.wait_while(events, |events| !events.contains(&"cancelled")).unwrap());
        Err(Errno::EINTR)
    }
}

struct QuietTree(Arc<Quiet>);

impl Filesystem for QuietTree {
    fn attach(&self, _: &Attach<'_>) -> Answer<Arc<dyn Node>> {
        Ok(Arc::new(Self(Arc::clone(&self.0))))
    }
}

impl Node for QuietTree {
    fn qid(&self) -> Qid {
        Qid::default()
    }
    fn attributes(&self, _: u64) -> Answer<Attributes> {
        Ok(Attributes::default())
    }
    fn open(&self, _: OpenFlags) -> Answer<Arc<dyn OpenFile>> {
        Ok(Arc::clone(&self.0) as Arc<dyn OpenFile>)
    }
    fn walk(&self, _: &[u8]) -> Answer<Arc<dyn Node>> {
        Err(Errno::ENOTDIR)
    }
}
