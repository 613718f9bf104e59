//! Other repositories, as the server reaches them.

use std::sync::Arc;

use p9p::filesystem::Cancel;

use crate::error::Error;
use crate::id::CommitId;
use crate::path;
use crate::session::Session;

/// Another repository, with a connection of its own: fetching and pushing take their time.
#[derive(Debug)]
pub struct Remote {
    session: Arc<Session>,
    root: String,
}

#[expect(clippy::missing_errors_doc, reason = "all fail with Error::Refused, with what the server says")]
impl Remote {
    pub(crate) fn new(session: Arc<Session>, name: &str, url: &str) -> Result<Self, Error> {
        let root = format!("remotes/{}", path::name(name)?);
        match session.mkdir(&root) {
            Ok(()) | Err(Error::Exists { .. }) => {}
            Err(error) => return Err(error),
        }
        session.write(&format!("{root}/url"), url.as_bytes())?;
        Ok(Self { session, root })
    }

    /// Fetches a branch and returns its head; ours does not move. See [`Branch::fast_forward`](crate::Branch).
    pub fn fetch(&self, branch: &str) -> Result<CommitId, Error> {
        self.run("fetch", branch)?;
        let head = self.session.open(&format!("{}/head", self.root))?;
        let line = self.session.read_next(&self.root, head, 0, &Cancel::default());
        self.session.forget(head);
        String::from_utf8_lossy(&line?).trim_end().parse()
    }

    /// Pushes a branch to the branch of the same name, by fast-forward only.
    pub fn push(&self, branch: &str) -> Result<(), Error> {
        self.run("push", branch)
    }

    /// Pushes a branch to the branch of the same name, whatever is lost there.
    pub fn force_push(&self, branch: &str) -> Result<(), Error> {
        self.run("push", &format!("+{branch}"))
    }

    /// What the last fetch or push is doing: its phase, objects and bytes. For people, and for other threads.
    pub fn progress(&self) -> Result<String, Error> {
        Ok(self.session.read_text(&format!("{}/progress", self.root))?.trim_end().to_owned())
    }

    fn run(&self, command: &str, argument: &str) -> Result<(), Error> {
        let file = format!("{}/{command}", self.root);
        match self.session.command(&file, argument.as_bytes()) {
            Err(Error::Refused { path, reason }) => {
                let said = self.session.read_text(&file).unwrap_or_default();
                let reason = if said.trim().is_empty() { reason } else { said.trim().to_owned() };
                Err(Error::Refused { path, reason })
            }
            done => done,
        }
    }
}
