//! A history of many clients, with kill -9 in between, checked: what was done and seen has one order, which agrees with time.
//!
//! Writers add one to a number, so that each commit has a place of its own in the order; two files have it, so that a torn
//! read shows. Every operation is noted with when it began and ended.

use std::collections::HashMap;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use datakit_client::{DataKit, Retries};

use super::history::{number, texts_along};
use super::world::{Server, World, fsck, rounds};

/// Whoever loses the race for the next number tries again until the server is gone.
const PATIENT: Retries =
    Retries { attempts: 1000, wait_first: Duration::from_millis(1), wait_max: Duration::from_millis(20) };

const WRITERS: usize = 4;
const READERS: usize = 2;

/// A number that somebody wrote, and was told so, or read.
#[derive(Debug, Clone)]
struct Event {
    is_write: bool,
    n: u64,
    /// All of the file: the number, and who wrote it when.
    text: String,
    began: Instant,
    ended: Instant,
}

/// What one life of the server did.
#[derive(Default)]
struct Life {
    events: Mutex<Vec<Event>>,
    /// The largest number that has to survive.
    kept: Mutex<u64>,
}

impl Life {
    fn note(&self, is_write: bool, text: &str, began: Instant) -> u64 {
        let n = number(text);
        let event = Event { is_write, n, text: text.to_owned(), began, ended: Instant::now() };
        self.events.lock().unwrap().push(event);
        n
    }

    fn keep(&self, n: u64) {
        let mut kept = self.kept.lock().unwrap();
        *kept = n.max(*kept);
    }

    /// Writes until the server is gone.
    fn write(&self, url: &str, name: &str, is_behind: bool) {
        let Ok(datakit) = DataKit::connect(url) else { return };
        let main = datakit.branch("main").unwrap();
        for time in 0.. {
            let (began, last) = (Instant::now(), Mutex::new(String::new()));
            let updated = main.update_with(PATIENT, |t| {
                let text = String::from_utf8(t.read("one")?).unwrap();
                let next = format!("{} {name} {time}", number(&text) + 1);
                last.lock().unwrap().clone_from(&next);
                t.write("one", next.as_bytes())?;
                t.write("other/two", next.as_bytes())
            });
            if updated.is_err() {
                return;
            }
            let n = self.note(true, &last.into_inner().unwrap(), began);
            if !is_behind || (time % 8 == 7 && datakit.sync().is_ok()) {
                self.keep(n);
            }
        }
    }

    /// Reads until the server is gone; both files agree in each snapshot.
    fn read(&self, url: &str) {
        let Ok(datakit) = DataKit::connect(url) else { return };
        let main = datakit.branch("main").unwrap();
        loop {
            let began = Instant::now();
            let Ok(Some(head)) = main.head() else { return };
            let Ok(snapshot) = datakit.snapshot(&head) else { return };
            let (Ok(one), Ok(two)) = (snapshot.tree().read("one"), snapshot.tree().read("other/two")) else {
                return;
            };
            assert_eq!(one, two, "a torn commit: {head}");
            self.note(false, &String::from_utf8(one).unwrap(), began);
        }
    }
}

/// Each operation comes after all that ended before it began: a read is not older, a write is newer.
fn check_order(events: &[Event]) {
    let mut by_end: Vec<&Event> = events.iter().collect();
    by_end.sort_by_key(|event| event.ended);
    let mut by_begin: Vec<&Event> = events.iter().collect();
    by_begin.sort_by_key(|event| event.began);
    let (mut ended, mut newest) = (by_end.into_iter().peekable(), None::<&Event>);
    for event in by_begin {
        while let Some(before) = ended.next_if(|before| before.ended <= event.began) {
            if newest.is_none_or(|newest| newest.n < before.n) {
                newest = Some(before);
            }
        }
        let Some(before) = newest else { continue };
        let is_after = if event.is_write { event.n > before.n } else { event.n >= before.n };
        assert!(is_after, "{event:?} began after the end of {before:?}");
    }
}

/// What the number was at each commit of the branch's line, as git has it: each is one more than the one before.
fn line(world: &World) -> HashMap<u64, String> {
    let texts = texts_along(world, &["one"]);
    for pair in texts.windows(2) {
        let (before, after) = (number(&pair[0]), number(&pair[1]));
        assert!(pair[0] == pair[1] || after == before + 1, "{:?} after {:?}", pair[1], pair[0]);
    }
    texts.into_iter().map(|text| (number(&text), text)).collect()
}

#[test]
fn what_was_done_and_seen_has_an_order_across_kills() {
    histories("fsync");
}

#[test]
fn what_was_done_and_seen_has_an_order_across_kills_ahead_of_git() {
    histories("behind");
}

fn histories(durability: &str) {
    let world = World::new();
    let arguments = ["--durability", durability];
    let is_behind = durability == "behind";
    let (lives, mut all, mut survived) = (rounds(8, 400), Vec::new(), Vec::new());
    for life in 0..lives {
        let mut server = Server::start(&world, "socket", &arguments);
        let main = server.connect().branch("main").unwrap();
        if life == 0 {
            main.update(|t| t.write("one", b"0 start 0").and_then(|()| t.write("other/two", b"0 start 0")))
                .unwrap();
            server.connect().sync().unwrap();
        } else {
            let text = String::from_utf8(main.tree().read("one").unwrap()).unwrap();
            survived.push(number(&text));
        }
        let (url, noted) = (server.url.clone(), Life::default());
        thread::scope(|scope| {
            for writer in 0..WRITERS {
                let (url, noted) = (&url, &noted);
                scope.spawn(move || noted.write(url, &format!("{life}-{writer}"), is_behind));
            }
            for _ in 0..READERS {
                scope.spawn(|| noted.read(&url));
            }
            thread::sleep(Duration::from_millis(100 + (life as u64 * 7919) % 400));
            server.kill();
        });
        check_order(&noted.events.lock().unwrap());
        all.push(noted);
    }
    let server = Server::start(&world, "socket", &arguments);
    let text = server.connect().branch("main").unwrap().tree().read("one").unwrap();
    survived.push(number(String::from_utf8(text).unwrap()));
    drop(server);
    fsck(&world.repo);
    let line = line(&world);
    let (mut events, mut lost) = (Vec::new(), 0);
    for (life, survived) in all.iter().zip(&survived) {
        assert!(*life.kept.lock().unwrap() <= *survived, "{survived} survived of {:?}", life.kept);
        for event in life.events.lock().unwrap().iter() {
            if event.n <= *survived {
                assert_eq!(line.get(&event.n), Some(&event.text), "{event:?} is not in the history");
            } else {
                // Only who acknowledges before anything is on disk may show what is lost later.
                assert!(is_behind, "{event:?} is lost");
                lost += 1;
            }
            events.push(event.clone());
        }
    }
    if !is_behind {
        check_order(&events);
    }
    let writes = events.iter().filter(|event| event.is_write).count();
    assert!(writes > lives, "only {writes} writes");
    println!(
        "{durability}: {lives} lives, {writes} writes, {} reads, {lost} of them seen and lost, {} numbers",
        events.len() - writes,
        line.len()
    );
}
