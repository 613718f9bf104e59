//! Watches: files that have a line more whenever something happens.
//!
//! Such a file answers a read when there is a new line; then one read is empty, and two empty reads in a row are the end.

use std::collections::VecDeque;
use std::sync::Arc;

use p9p::filesystem::Cancel;
use p9p::message::Fid;

use crate::error::Error;
use crate::session::Session;

/// Longest line, in bytes.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Where a watch that counts begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// With what is now, and its number.
    Now,
    /// With the first of this number or later: one more than the last that was seen. Numbers are those of one run of a
    /// server, and it keeps a limited number of updates: [`Error::Gone`] when they are no longer there.
    Number(u64),
}

impl From {
    pub(crate) fn query(self) -> String {
        match self {
            Self::Now => "?from=now".to_owned(),
            Self::Number(number) => format!("?from={number}"),
        }
    }
}

/// Something that happened, and its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<T> {
    /// Grows with each, by one or more.
    pub number: u64,
    /// What is since.
    pub value: T,
}

/// Reads `NUMBER VALUE`.
pub(crate) fn parse_event<T>(
    path: &str,
    line: &str,
    parse: impl FnOnce(&str) -> Result<T, Error>,
) -> Result<Event<T>, Error> {
    let strange = || Error::Answer { path: path.to_owned(), text: line.to_owned() };
    let (number, value) = line.split_once(' ').ok_or_else(strange)?;
    Ok(Event { number: number.parse().map_err(|_| strange())?, value: parse(value)? })
}

type Parse<T> = Box<dyn Fn(&str) -> Result<T, Error> + Send>;

/// An iterator over what happens. It waits; [`Watch::stopper`] ends it from another thread.
pub struct Watch<T> {
    session: Arc<Session>,
    path: String,
    fid: Fid,
    offset: u64,
    partial: Vec<u8>,
    lines: VecDeque<String>,
    parse: Parse<T>,
    cancel: Arc<Cancel>,
    is_over: bool,
}

impl<T> Watch<T> {
    pub(crate) fn open(
        session: &Arc<Session>,
        path: String,
        parse: impl Fn(&str) -> Result<T, Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let fid = session.open(&path)?;
        Ok(Self {
            session: Arc::clone(session),
            path,
            fid,
            offset: 0,
            partial: Vec::new(),
            lines: VecDeque::new(),
            parse: Box::new(parse),
            cancel: Arc::default(),
            is_over: false,
        })
    }

    /// What ends this watch.
    pub fn stopper(&self) -> Stopper {
        Stopper { cancel: Arc::clone(&self.cancel) }
    }

    /// Waits for at least one more line; `false` is the end.
    fn fill(&mut self) -> Result<bool, Error> {
        let mut was_empty = false;
        while self.lines.is_empty() {
            let bytes = self.session.read_next(&self.path, self.fid, self.offset, &self.cancel)?;
            if bytes.is_empty() {
                if was_empty {
                    return Ok(false);
                }
                was_empty = true;
                continue;
            }
            was_empty = false;
            self.offset += bytes.len() as u64;
            self.partial.extend_from_slice(&bytes);
            while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.partial.drain(..=end).collect();
                self.lines.push_back(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if self.partial.len() > LINE_BYTES_MAX {
                let text = format!("a line of more than {LINE_BYTES_MAX} bytes");
                return Err(Error::Answer { path: self.path.clone(), text });
            }
        }
        Ok(true)
    }
}

impl<T> Iterator for Watch<T> {
    type Item = Result<T, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        match self.fill() {
            Ok(true) => self.lines.pop_front().map(|line| (self.parse)(&line)),
            Ok(false) => {
                self.is_over = true;
                None
            }
            Err(error) => {
                self.is_over = true;
                (!self.cancel.is_cancelled()).then_some(Err(error))
            }
        }
    }
}

impl<T> Drop for Watch<T> {
    fn drop(&mut self) {
        self.session.forget(self.fid);
    }
}

impl std::fmt::Debug for Stopper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stopper").finish_non_exhaustive()
    }
}

impl<T> std::fmt::Debug for Watch<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Ends a watch, even one that waits.
#[derive(Clone)]
pub struct Stopper {
    cancel: Arc<Cancel>,
}

impl Stopper {
    /// Ends it: the iterator has no more items.
    pub fn stop(&self) {
        self.cancel.cancel();
    }
}
