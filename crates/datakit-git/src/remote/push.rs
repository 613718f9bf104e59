//! Pushing: git's send-pack over `gix`'s transports.
//!
//! Spec: gitprotocol-pack(5) "Pushing Data To a Server", gitprotocol-capabilities(5), gitprotocol-http(5).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{BufWriter, Read, Write};
use std::rc::Rc;
use std::sync::Arc;

use gix::ObjectId;
use gix::bstr::ByteSlice;
use gix::protocol::handshake::Ref;
use gix::protocol::transport::Service;
use gix::protocol::transport::client::blocking_io::Transport;
use gix::protocol::transport::client::{Capabilities, MessageKind, TransportWithoutIO, WriteMode};
use gix::protocol::transport::packetline::read::ProgressAction;
use gix::remote::Direction;

use super::Remote;
use super::connect::{self, AnyTransport};
use super::error::{PushError, chain};
use super::progress::Reporter;
use super::report::{self, Report};
use super::select;
use super::transfer::{Phase, Transfer};

/// Longest report that is read, in bytes.
const REPORT_BYTES_MAX: u64 = 4 << 20;
/// How much of what it says for people is kept, in bytes.
const SAID_BYTES_MAX: usize = 64 << 10;
/// Bytes collected before they are sent.
const BUFFER_BYTES: usize = 64 << 10;

/// A ref of the other repository that shall move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// Its full name, as `refs/heads/main`.
    pub reference: String,
    /// Where it shall point; `None` deletes it.
    pub new: Option<ObjectId>,
    /// Whether it may lose commits.
    pub force: bool,
}

/// What became of an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The ref was moved, from where it was.
    Moved(Option<ObjectId>),
    /// It was there already.
    UpToDate,
    /// It was refused, and why: by the other side, or by us because commits would be lost.
    Refused(String),
}

/// What a push did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// Each update's ref and outcome, in the order of the updates.
    pub refs: Vec<(String, Outcome)>,
    /// How many objects were sent.
    pub objects: u64,
    /// What the other side said while it worked, for people.
    pub said: String,
}

impl Pushed {
    /// Whether nothing was refused.
    pub fn is_ok(&self) -> bool {
        !self.refs.iter().any(|(_, outcome)| matches!(outcome, Outcome::Refused(_)))
    }
}

/// Pushes.
pub fn push(
    remote: &Remote,
    updates: &[Update],
    atomic: bool,
    transfer: &Arc<Transfer>,
) -> Result<Pushed, PushError> {
    let repo =
        connect::open(&remote.git_dir).map_err(|error| PushError::Repository { reason: chain(&error) })?;
    for update in updates {
        if gix::validate::reference::name(update.reference.as_bytes().as_bstr()).is_err() {
            return Err(PushError::RefName { name: update.reference.clone() });
        }
        if let Some(id) = update.new.filter(|id| !repo.has_object(*id)) {
            return Err(PushError::NoObject { id });
        }
    }
    let mut push = Push { repo: &repo, remote, transfer, atomic };
    push.run(updates).map_err(|error| if transfer.is_cancelled() { PushError::Cancelled } else { error })
}

struct Push<'a> {
    repo: &'a gix::Repository,
    remote: &'a Remote,
    transfer: &'a Arc<Transfer>,
    atomic: bool,
}

/// An update that is sent, as `old new name`.
struct Command<'a> {
    update: &'a Update,
    old: Option<ObjectId>,
}

impl Push<'_> {
    fn run(&mut self, updates: &[Update]) -> Result<Pushed, PushError> {
        self.transfer.enter(Phase::Connecting);
        let mut transport = self.connect()?;
        let mut progress = Reporter::new(self.transfer);
        let handshake = gix::protocol::handshake(
            &mut transport,
            Service::ReceivePack,
            connect::credentials(self.repo),
            Vec::new(),
            &mut progress,
        )
        .map_err(|error| self.refused(&error))?;
        let capabilities = &handshake.capabilities;
        self.check_kind(capabilities)?;
        if self.atomic && !capabilities.contains("atomic") {
            return Err(PushError::NotAtomic { url: self.remote.url() });
        }
        self.transfer.enter(Phase::Negotiating);
        let theirs = refs_of(handshake.refs.as_deref().unwrap_or_default());
        let mut outcomes: Vec<_> = updates.iter().map(|update| self.decide(update, &theirs)).collect();
        if self.atomic && outcomes.iter().any(|outcome| matches!(outcome, Some(Outcome::Refused(_)))) {
            let others = || Some(Outcome::Refused("another update was refused".to_owned()));
            outcomes = outcomes.into_iter().map(|outcome| outcome.or_else(others)).collect();
        }
        let commands: Vec<_> = updates
            .iter()
            .zip(&outcomes)
            .filter(|(_, outcome)| outcome.is_none())
            .map(|(update, _)| Command { update, old: theirs.branches.get(&update.reference).copied() })
            .collect();
        let (report, said) = if commands.is_empty() {
            (Report::default(), String::new())
        } else {
            let objects = self.objects(&commands, &theirs)?;
            self.send(&mut transport, &commands, objects, capabilities)?
        };
        if let Some(reason) = report.unpack {
            return Err(PushError::Unpack { url: self.remote.url(), reason });
        }
        let refs = updates.iter().zip(outcomes).map(|(update, outcome)| {
            let old = theirs.branches.get(&update.reference).copied();
            let outcome = outcome.unwrap_or_else(|| match report.refs.get(&update.reference) {
                Some(None) => Outcome::Moved(old),
                Some(Some(reason)) => Outcome::Refused(reason.clone()),
                None => Outcome::Refused("the other side did not say what became of it".to_owned()),
            });
            (update.reference.clone(), outcome)
        });
        Ok(Pushed { refs: refs.collect(), objects: self.transfer.status().objects, said })
    }

    fn connect(&self) -> Result<AnyTransport, PushError> {
        let connected = (|| {
            let theirs = self.repo.remote_at(self.remote.url.clone())?;
            let mut transport = connect::transport(self.repo, &theirs, Direction::Push, self.transfer)?;
            if let Some(url) = theirs.url(Direction::Push)
                && let Some(options) = connect::options(self.repo, url)?
            {
                transport.configure(&*options)?;
            }
            Ok(transport)
        })();
        connected.map_err(|error: gix::Error| self.refused(&error))
    }

    fn refused(&self, error: &gix::Error) -> PushError {
        let (url, reason) = (self.remote.url(), chain(error));
        if error.is_unauthenticated() {
            PushError::Credentials { url, reason }
        } else {
            PushError::Connect { url, reason }
        }
    }

    fn check_kind(&self, capabilities: &Capabilities) -> Result<(), PushError> {
        let theirs = capabilities
            .capability("object-format")
            .and_then(|format| format.value().map(ToString::to_string))
            .unwrap_or_else(|| "sha1".to_owned());
        if theirs == self.repo.object_hash().to_string() {
            return Ok(());
        }
        Err(PushError::HashKind { url: self.remote.url(), kind: theirs })
    }

    /// What is clear before anything is sent; `None` when the update has to be.
    fn decide(&self, update: &Update, theirs: &Theirs) -> Option<Outcome> {
        let old = theirs.branches.get(&update.reference).copied();
        match (old, update.new) {
            (old, new) if old == new => Some(Outcome::UpToDate),
            (None, _) | (_, None) => None,
            _ if update.force => None,
            (Some(old), Some(_)) if !self.repo.has_object(old) => Some(Outcome::Refused(
                "not-fast-forward: it has commits that are not here: fetch first".to_owned(),
            )),
            (Some(old), Some(new)) => {
                let is_ahead =
                    self.repo.merge_base(old, new).is_ok_and(|base| base.is_some_and(|base| base == old));
                (!is_ahead).then(|| {
                    Outcome::Refused("not-fast-forward: it has commits that this one lacks".to_owned())
                })
            }
        }
    }

    fn objects(&self, commands: &[Command<'_>], theirs: &Theirs) -> Result<Option<Vec<ObjectId>>, PushError> {
        let tips: Vec<_> = commands.iter().filter_map(|command| command.update.new).collect();
        if tips.is_empty() {
            return Ok(None);
        }
        let has: Vec<_> = theirs.tips.iter().copied().filter(|id| self.repo.has_object(*id)).collect();
        select::select(self.repo, &tips, &has, self.transfer)
            .map(Some)
            .map_err(|error| PushError::Repository { reason: chain(&error) })
    }

    /// Sends the commands and, unless all delete, the pack; reads the report.
    fn send(
        &self,
        transport: &mut AnyTransport,
        commands: &[Command<'_>],
        objects: Option<Vec<ObjectId>>,
        capabilities: &Capabilities,
    ) -> Result<(Report, String), PushError> {
        let wire = |reason: String| PushError::Connect { url: self.remote.url(), reason };
        let request = transport
            .request(WriteMode::Binary, MessageKind::Flush, false)
            .map_err(|error| wire(chain(&error)))?;
        let has_bands = capabilities.contains("side-band-64k");
        let head = self.commands(commands, capabilities);
        let (writer, mut reader) = request.into_parts();
        let mut writer = BufWriter::with_capacity(BUFFER_BYTES, writer);
        self.transfer.enter(Phase::Sending);
        let sent = writer.write_all(&head).map_err(|error| error.to_string()).and_then(|()| {
            objects.map_or(Ok(()), |objects| {
                select::write_pack(self.repo, objects, &mut writer, self.transfer)
                    .map_err(|error| chain(&error))
            })
        });
        let sent = sent.and_then(|()| writer.flush().map_err(|error| error.to_string()));
        drop(writer);
        self.transfer.enter(Phase::Waiting);
        let said = Rc::new(RefCell::new(Vec::new()));
        let mut answer = Vec::new();
        let read = if has_bands {
            let said = Rc::clone(&said);
            reader.set_progress_handler(Some(Box::new(move |_, text: &[u8]| {
                let mut said = said.borrow_mut();
                let left = SAID_BYTES_MAX.saturating_sub(said.len());
                said.extend_from_slice(&text[..text.len().min(left)]);
                ProgressAction::Continue(())
            })));
            reader.by_ref().take(REPORT_BYTES_MAX).read_to_end(&mut answer).map(drop)
        } else {
            read_lines(&mut reader, &mut answer)
        };
        drop(reader);
        let said = String::from_utf8_lossy(&said.borrow()).into_owned();
        let report = report::parse(&answer);
        // Whoever hangs up early usually says why; that is worth more than "broken pipe".
        match (sent, read, report) {
            (Ok(()), _, Ok(report)) | (Err(_), _, Ok(report @ Report { unpack: Some(_), .. })) => {
                Ok((report, said))
            }
            (Err(reason), ..) => Err(wire(with(reason, &said))),
            (_, Err(error), _) => Err(wire(with(chain(&error), &said))),
            (_, _, Err(error)) => Err(wire(with(error.to_string(), &said))),
        }
    }

    fn commands(&self, commands: &[Command<'_>], capabilities: &Capabilities) -> Vec<u8> {
        let null = self.repo.object_hash().null();
        let mut offered = String::new();
        for wanted in ["report-status", "side-band-64k", "quiet", "ofs-delta"] {
            if capabilities.contains(wanted) {
                offered.push(' ');
                offered.push_str(wanted);
            }
        }
        if self.atomic {
            offered.push_str(" atomic");
        }
        if capabilities.contains("object-format") {
            offered.push_str(&format!(" object-format={}", self.repo.object_hash()));
        }
        if capabilities.contains("agent") {
            offered.push_str(concat!(" agent=datakit/", env!("CARGO_PKG_VERSION")));
        }
        let mut out = Vec::new();
        for (index, Command { update, old }) in commands.iter().enumerate() {
            let (old, new) = (old.unwrap_or(null), update.new.unwrap_or(null));
            let mut text = format!("{old} {new} {}", update.reference);
            if index == 0 {
                text.push('\0');
                text.push_str(&offered);
            }
            report::line(&mut out, text.as_bytes());
        }
        report::flush(&mut out);
        out
    }
}

/// Reads a report that comes without bands into the form that one in a band has.
fn read_lines(
    reader: &mut (impl gix::protocol::transport::client::blocking_io::ReadlineBufRead + ?Sized),
    answer: &mut Vec<u8>,
) -> std::io::Result<()> {
    while let Some(next) = reader.readline() {
        let packet = next?.map_err(|error| std::io::Error::other(chain(&error)))?;
        if let Some(payload) = packet.as_slice() {
            report::line(answer, payload);
        }
        if answer.len() as u64 > REPORT_BYTES_MAX {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
    }
    Ok(())
}

fn with(reason: String, said: &str) -> String {
    match said.trim() {
        "" => reason,
        said => format!("{reason} ({})", said.lines().last().unwrap_or_default()),
    }
}

/// The other side's refs, and all that it is known to have.
struct Theirs {
    branches: BTreeMap<String, ObjectId>,
    tips: Vec<ObjectId>,
}

fn refs_of(refs: &[Ref]) -> Theirs {
    let mut theirs = Theirs { branches: BTreeMap::new(), tips: Vec::new() };
    for found in refs {
        let (name, id) = match found {
            Ref::Direct { full_ref_name, object } => (full_ref_name, object),
            Ref::Peeled { full_ref_name, tag, .. } => (full_ref_name, tag),
            Ref::Symbolic { full_ref_name, object, tag, .. } => {
                (full_ref_name, tag.as_ref().unwrap_or(object))
            }
            Ref::Unborn { .. } => continue,
        };
        theirs.tips.push(*id);
        if let Ok(name) = name.to_str() {
            theirs.branches.insert(name.to_owned(), *id);
        }
    }
    theirs
}
