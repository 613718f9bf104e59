//! Who a client is: what a service asks before it lets one attach.
//!
//! Without an [`Authenticator`] a server believes what clients say. [`PeerCredentials`] asks the kernel who is at the
//! other end of a unix socket; [`SharedToken`] wants a secret written to the fid of a Tauth, before it is attached
//! with. Both are for local or trusted links: nothing here encrypts.
//!
//! Spec: attach(5), "auth".

use std::sync::{Arc, Mutex, PoisonError};

use crate::errno::Errno;
use crate::filesystem::{Answer, Attach};

/// Longest token, in bytes.
const TOKEN_BYTES_MAX: usize = 4096;

/// What the transport knows of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Peer {
    /// User and group of the process at the other end of a unix socket, as it was when it connected.
    pub credentials: Option<PeerIds>,
}

/// The ids of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerIds {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

/// Decides who may attach.
pub trait Authenticator: Send + Sync {
    /// Begins a proof for `who` (Tauth).
    ///
    /// # Errors
    /// ENOENT where none is needed: the client then attaches without one.
    fn begin(&self, who: &Attach<'_>, peer: &Peer) -> Answer<Arc<dyn Proof>>;

    /// Lets `who` attach, with a proof if there is one (Tattach).
    ///
    /// # Errors
    /// EACCES or EPERM.
    fn admit(&self, who: &Attach<'_>, peer: &Peer, proof: Option<&dyn Proof>) -> Answer<()>;
}

/// A proof on its way: what is read from and written to the fid of a Tauth.
pub trait Proof: Send + Sync {
    /// The server's next words to the client, into the front of `buffer`; none is the end.
    ///
    /// # Errors
    /// EACCES when it went wrong.
    fn read(&self, buffer: &mut [u8]) -> Answer<usize>;

    /// The client's next words.
    ///
    /// # Errors
    /// EACCES when they are wrong.
    fn write(&self, bytes: &[u8]) -> Answer<usize>;

    /// Whether the client has proved that it is `who`.
    fn holds_for(&self, who: &Attach<'_>) -> bool;
}

/// Lets in the processes of some users of this machine, over unix sockets; each only as itself, root as anybody.
#[derive(Debug, Clone)]
pub struct PeerCredentials {
    users: Vec<u32>,
}

impl PeerCredentials {
    /// Lets in these users.
    pub fn of_users(users: impl Into<Vec<u32>>) -> Self {
        Self { users: users.into() }
    }

    /// Lets in the user who runs this process.
    #[cfg(target_os = "linux")]
    pub fn of_this_user() -> Self {
        Self { users: vec![rustix::process::geteuid().as_raw()] }
    }
}

impl Authenticator for PeerCredentials {
    fn begin(&self, _who: &Attach<'_>, _peer: &Peer) -> Answer<Arc<dyn Proof>> {
        Err(Errno::ENOENT.with_text("no authentication is needed"))
    }

    fn admit(&self, who: &Attach<'_>, peer: &Peer, _proof: Option<&dyn Proof>) -> Answer<()> {
        let Some(ids) = peer.credentials else {
            return Err(Errno::EACCES.with_text("the server only lets in clients over its unix socket"));
        };
        if !self.users.contains(&ids.uid) {
            return Err(Errno::EACCES.with_text(format!("user {} is not let in", ids.uid)));
        }
        let claims_another = who.numeric_user != u32::MAX && who.numeric_user != ids.uid;
        if claims_another && ids.uid != 0 {
            let text = format!("user {} cannot attach as user {}", ids.uid, who.numeric_user);
            return Err(Errno::EPERM.with_text(text));
        }
        Ok(())
    }
}

/// Lets in who knows a secret.
#[derive(Clone)]
pub struct SharedToken {
    token: Arc<[u8]>,
}

/// A token that cannot be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token has 1 to {TOKEN_BYTES_MAX} bytes, not {bytes}")]
pub struct TokenError {
    /// Its length.
    pub bytes: usize,
}

impl SharedToken {
    /// The secret is `token`.
    ///
    /// # Errors
    /// [`TokenError`] when it is empty or too long.
    pub fn new(token: &[u8]) -> Result<Self, TokenError> {
        match token.len() {
            1..=TOKEN_BYTES_MAX => Ok(Self { token: token.into() }),
            bytes => Err(TokenError { bytes }),
        }
    }
}

impl std::fmt::Debug for SharedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedToken").finish_non_exhaustive()
    }
}

impl Authenticator for SharedToken {
    fn begin(&self, who: &Attach<'_>, _peer: &Peer) -> Answer<Arc<dyn Proof>> {
        Ok(Arc::new(TokenProof {
            token: Arc::clone(&self.token),
            user: who.user.into(),
            numeric_user: who.numeric_user,
            tree: who.tree.into(),
            said: Mutex::default(),
        }))
    }

    fn admit(&self, who: &Attach<'_>, _peer: &Peer, proof: Option<&dyn Proof>) -> Answer<()> {
        match proof {
            Some(proof) if proof.holds_for(who) => Ok(()),
            Some(_) => Err(Errno::EACCES.with_text("the token is not the server's")),
            None => Err(Errno::EACCES.with_text("the server wants a token")),
        }
    }
}

/// A token being written.
struct TokenProof {
    token: Arc<[u8]>,
    user: Box<[u8]>,
    numeric_user: u32,
    tree: Box<[u8]>,
    said: Mutex<Vec<u8>>,
}

impl Proof for TokenProof {
    fn read(&self, _buffer: &mut [u8]) -> Answer<usize> {
        Ok(0)
    }

    fn write(&self, bytes: &[u8]) -> Answer<usize> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() + bytes.len() > TOKEN_BYTES_MAX {
            return Err(Errno::EACCES);
        }
        said.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn holds_for(&self, who: &Attach<'_>) -> bool {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let same_claim =
            *self.user == *who.user && self.numeric_user == who.numeric_user && *self.tree == *who.tree;
        same_claim && same_secret(&said, &self.token)
    }
}

/// Compares in a time that does not tell where they differ.
fn same_secret(said: &[u8], secret: &[u8]) -> bool {
    let difference = said.iter().zip(secret).fold(0, |sum, (a, b)| sum | (a ^ b));
    said.len() == secret.len() && std::hint::black_box(difference) == 0
}
