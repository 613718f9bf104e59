//! A server, attached to: what the commands have in common.

use p9p::connection::Connection;
use p9p::message::Fid;

use crate::failure::Failure;
use crate::target::Target;

/// An attached session.
pub struct Client {
    pub connection: Connection,
    pub root: Fid,
}

impl Client {
    /// Connects and attaches.
    pub fn new(target: &Target) -> Result<Self, Failure> {
        let connection = target.how.connect(&target.url)?;
        let user = std::env::var("USER").unwrap_or_default();
        let (uid, tree) = (target.how.uid(), target.how.tree.as_bytes());
        let attached = match target.how.token()? {
            Some(token) => connection.attach_with_token(user.as_bytes(), uid, tree, &token),
            None => connection.attach(user.as_bytes(), uid, tree),
        };
        let root =
            attached.map_err(|error| Failure::of(&format!("{}: cannot attach", target.url), &error))?;
        Ok(Self { connection, root })
    }

    /// A fid for a path.
    pub fn walk(&self, path: &str) -> Result<Fid, Failure> {
        self.connection.walk_path(self.root, path.as_bytes()).map_err(|error| Failure::of_call(path, &error))
    }

    /// A fid for the directory that a path is in, and the last name.
    pub fn walk_to_parent<'p>(&self, path: &'p str) -> Result<(Fid, &'p [u8]), Failure> {
        let trimmed = path.trim_end_matches('/');
        let (parent, name) = trimmed.rsplit_once('/').unwrap_or(("", trimmed));
        if name.is_empty() {
            return Err(Failure::usage(format!("`{path}` names the root, not something in it")));
        }
        Ok((self.walk(parent)?, name.as_bytes()))
    }
}
