//! Small files made of text: what is shown, what can be edited, and files to which commands are written.

use std::sync::{Arc, Mutex, PoisonError};

use p9p::Errno;
use p9p::filesystem::{Answer, Cancel, OpenFile, OpenFlags};
use p9p::stat::{SetAttributes, setattr};
use p9p_fuse::Caching;

use super::item::{self, Change, Found, Item, ItemStat, Kind};

/// Most bytes of a text that is edited, or of a command.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// A text that is made when it is opened.
pub(crate) struct Shown {
    make: Box<dyn Fn() -> Answer<Vec<u8>> + Send + Sync>,
    caching: Caching,
}

impl Shown {
    /// Made anew at each open.
    pub fn live(make: impl Fn() -> Answer<Vec<u8>> + Send + Sync + 'static) -> Self {
        Self { make: Box::new(make), caching: Caching::LIVE }
    }

    /// The same for ever.
    pub fn fixed(text: Vec<u8>) -> Self {
        Self { make: Box::new(move || Ok(text.clone())), caching: Caching::IMMUTABLE }
    }
}

/// A text that clients edit as a whole.
pub(crate) struct Edited(pub Arc<Mutex<Vec<u8>>>);

/// What a command does.
type Run = Box<dyn Fn(&[u8], &Cancel) -> Answer<Vec<u8>> + Send + Sync>;

/// A file to which commands are written: one write is one command, whose answer is what is read.
pub(crate) struct Command {
    /// Does it, and answers with what is then read.
    pub run: Run,
    /// The last answer, or the last error.
    pub reply: Arc<Mutex<Vec<u8>>>,
}

enum Open {
    Shown(Vec<u8>),
    Edited { text: Arc<Mutex<Vec<u8>>>, appends: bool },
    Command { run: Arc<Command> },
}

struct OpenText {
    open: Open,
    writes: bool,
}

fn lock(text: &Mutex<Vec<u8>>) -> std::sync::MutexGuard<'_, Vec<u8>> {
    text.lock().unwrap_or_else(PoisonError::into_inner)
}

fn resize(text: &mut Vec<u8>, size: u64) -> Answer<()> {
    let size = usize::try_from(size).ok().filter(|size| *size <= TEXT_BYTES_MAX).ok_or(Errno::EFBIG)?;
    text.resize(size, 0);
    Ok(())
}

impl Item for Shown {
    fn stat(&self) -> Answer<ItemStat> {
        Ok(ItemStat::file((self.make)().map_or(0, |text| text.len())))
    }

    fn caching(&self) -> Caching {
        self.caching
    }

    fn find(&self, _name: &[u8]) -> Answer<Found> {
        item::not_a_directory()
    }

    fn open(&self, flags: OpenFlags, _number: u64) -> Answer<Arc<dyn OpenFile>> {
        if flags.mutates() {
            return item::read_only_file();
        }
        Ok(Arc::new(OpenText { open: Open::Shown((self.make)()?), writes: false }))
    }

    fn change(&self, _change: &Change<'_>) -> Answer<()> {
        item::not_a_directory()
    }

    fn set(&self, _change: &SetAttributes) -> Answer<()> {
        item::read_only_file()
    }

    fn target(&self) -> Answer<Vec<u8>> {
        Err(Errno::EINVAL)
    }
}

impl Item for Edited {
    fn stat(&self) -> Answer<ItemStat> {
        Ok(ItemStat::file(lock(&self.0).len()))
    }

    fn caching(&self) -> Caching {
        Caching::LIVE
    }

    fn find(&self, _name: &[u8]) -> Answer<Found> {
        item::not_a_directory()
    }

    fn open(&self, flags: OpenFlags, _number: u64) -> Answer<Arc<dyn OpenFile>> {
        if flags.contains(OpenFlags::TRUNC) {
            lock(&self.0).clear();
        }
        let appends = flags.contains(OpenFlags::APPEND);
        let open = Open::Edited { text: Arc::clone(&self.0), appends };
        Ok(Arc::new(OpenText { open, writes: flags.writes() }))
    }

    fn change(&self, _change: &Change<'_>) -> Answer<()> {
        item::not_a_directory()
    }

    fn set(&self, change: &SetAttributes) -> Answer<()> {
        if change.valid & setattr::SIZE != 0 {
            resize(&mut lock(&self.0), change.size)?;
        }
        Ok(())
    }

    fn target(&self) -> Answer<Vec<u8>> {
        Err(Errno::EINVAL)
    }
}

/// A [`Command`], not open.
pub(crate) struct CommandFile(pub Arc<Command>);

impl CommandFile {
    /// `run` does what is written and says what is then read.
    pub fn new(
        run: impl Fn(&[u8], &Cancel) -> Answer<Vec<u8>> + Send + Sync + 'static,
        reply: &Arc<Mutex<Vec<u8>>>,
    ) -> Self {
        Self(Arc::new(Command { run: Box::new(run), reply: Arc::clone(reply) }))
    }
}

impl Item for CommandFile {
    fn stat(&self) -> Answer<ItemStat> {
        Ok(ItemStat::file(lock(&self.0.reply).len()))
    }

    fn caching(&self) -> Caching {
        Caching::LIVE
    }

    fn find(&self, _name: &[u8]) -> Answer<Found> {
        item::not_a_directory()
    }

    fn open(&self, flags: OpenFlags, _number: u64) -> Answer<Arc<dyn OpenFile>> {
        let open = Open::Command { run: Arc::clone(&self.0) };
        Ok(Arc::new(OpenText { open, writes: flags.writes() }))
    }

    fn change(&self, _change: &Change<'_>) -> Answer<()> {
        item::not_a_directory()
    }

    /// `echo commit > ctl` empties it first, which is nothing; and a wstat that does sets the mode that it has.
    fn set(&self, change: &SetAttributes) -> Answer<()> {
        if change.valid & setattr::SIZE != 0 {
            return if change.size == 0 {
                Ok(())
            } else {
                Err(Errno::EPERM.with_text("Can't extend command file"))
            };
        }
        if change.mode & 0o7777 == Kind::File.mode() & 0o7777 {
            return Ok(());
        }
        Err(Errno::EPERM.with_text("Can't chmod special file"))
    }

    fn target(&self) -> Answer<Vec<u8>> {
        Err(Errno::EINVAL)
    }
}

impl OpenText {
    fn read_text(&self, text: &[u8], offset: u64, buffer: &mut [u8]) -> usize {
        let rest = usize::try_from(offset).ok().and_then(|offset| text.get(offset..)).unwrap_or(&[]);
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        count
    }
}

impl OpenFile for OpenText {
    fn read(&self, offset: u64, buffer: &mut [u8], _cancel: &Cancel) -> Answer<usize> {
        Ok(match &self.open {
            Open::Shown(text) => self.read_text(text, offset, buffer),
            Open::Edited { text, .. } => self.read_text(&lock(text), offset, buffer),
            Open::Command { run } => self.read_text(&lock(&run.reply), offset, buffer),
        })
    }

    fn write(&self, offset: u64, bytes: &[u8], cancel: &Cancel) -> Answer<usize> {
        if !self.writes {
            return Err(Errno::EBADF);
        }
        match &self.open {
            Open::Shown(_) => item::read_only_file(),
            Open::Edited { text, appends } => {
                let mut text = lock(text);
                let start = if *appends { text.len() as u64 } else { offset };
                let end = start.checked_add(bytes.len() as u64).ok_or(Errno::EFBIG)?;
                if end > text.len() as u64 {
                    resize(&mut text, end)?;
                }
                let start = usize::try_from(start).map_err(|_| Errno::EFBIG)?;
                text[start..start + bytes.len()].copy_from_slice(bytes);
                Ok(bytes.len())
            }
            Open::Command { run } => {
                if bytes.len() > TEXT_BYTES_MAX {
                    return Err(Errno::EFBIG);
                }
                let result = (run.run)(bytes, cancel);
                *lock(&run.reply) = match &result {
                    Ok(reply) => reply.clone(),
                    // Who mounts by FUSE or 9P2000.L has a number alone: the words are here.
                    Err(errno) => {
                        let text = errno.take_text().unwrap_or_else(|| errno.to_string());
                        let _ = errno.with_text(text.clone());
                        format!("{text}\n").into_bytes()
                    }
                };
                result.map(|_| bytes.len())
            }
        }
    }
}
