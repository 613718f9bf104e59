//! What goes wrong between repositories, in words for the person who has to do something about it.

use gix::ObjectId;

/// Why a remote was not made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum UrlError {
    #[error("'{name}' cannot name a remote: use letters, digits, '-' and '.'")]
    Name { name: String },
    #[error("'{url}' cannot be used as a URL: {reason}")]
    Url { url: String, reason: String },
}

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum FetchError {
    #[error("'{branch}' cannot be the name of a branch")]
    BranchName { branch: String },
    #[error("no head to fetch: {url} has no branch '{branch}'")]
    NoBranch { branch: String, url: String },
    #[error("no head to fetch: {url} has no branches")]
    Empty { url: String },
    #[error("cannot fetch {url}: {reason}")]
    Connect { url: String, reason: String },
    #[error("cannot fetch {url}: it wants credentials; store them with git's credential helper ({reason})")]
    Credentials { url: String, reason: String },
    #[error("cannot fetch into the repository: {reason}")]
    Repository { reason: String },
    #[error("the fetch was cancelled")]
    Cancelled,
}

/// Why nothing was pushed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each message documents its variant")]
pub enum PushError {
    #[error("'{name}' cannot be the name of a ref")]
    RefName { name: String },
    #[error("the object {id} is not in the repository")]
    NoObject { id: ObjectId },
    #[error("cannot push to {url}: {reason}")]
    Connect { url: String, reason: String },
    #[error("cannot push to {url}: it wants credentials; store them with git's credential helper ({reason})")]
    Credentials { url: String, reason: String },
    #[error("{url} cannot update all refs or none: leave atomic out")]
    NotAtomic { url: String },
    #[error("{url} has objects of another kind ({kind}) than the repository")]
    HashKind { url: String, kind: String },
    #[error("{url} did not take the objects: {reason}")]
    Unpack { url: String, reason: String },
    #[error("cannot read the repository: {reason}")]
    Repository { reason: String },
    #[error("the push was cancelled")]
    Cancelled,
}

/// `FetchError` and `PushError` as far as running one on a thread needs it.
pub trait Cancellable {
    /// The variant for a cancelled call.
    fn cancelled() -> Self;
    /// The variant for a call that could not be made here.
    fn local(reason: String) -> Self;
}

impl Cancellable for FetchError {
    fn cancelled() -> Self {
        Self::Cancelled
    }

    fn local(reason: String) -> Self {
        Self::Repository { reason }
    }
}

impl Cancellable for PushError {
    fn cancelled() -> Self {
        Self::Cancelled
    }

    fn local(reason: String) -> Self {
        Self::Repository { reason }
    }
}

/// An error and its causes in one line, each said once.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let said = error.to_string();
        let said = said.lines().next().unwrap_or_default().trim();
        if !said.is_empty() && !text.contains(said) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(said);
        }
        next = error.source();
    }
    text
}
