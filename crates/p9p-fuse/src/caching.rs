//! What the kernel may keep of a node.

use std::sync::Arc;
use std::time::Duration;

use p9p::filesystem::Node;

/// What the kernel may keep of a node, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caching {
    /// How long its name, where it is, leads to it.
    pub entry_ttl: Duration,
    /// How long a name stays missing that was looked for in this directory.
    pub negative_ttl: Duration,
    /// How long its attributes hold.
    pub attr_ttl: Duration,
    /// What becomes of its content.
    pub content: Content,
}

/// What the kernel does with a file's content, or a directory's entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Cached, and kept from one open to the next: it never changes, or an [`Invalidator`](crate::Invalidator) tells.
    Keep,
    /// Cached while it is open; read anew at the next open.
    Open,
    /// Never cached: every read(2) and write(2) is a request.
    Direct,
    /// As `Direct`, and there is no seeking: what is read is gone.
    Stream,
}

impl Caching {
    /// For what never changes.
    pub const IMMUTABLE: Self = Self {
        entry_ttl: Duration::from_secs(86_400),
        negative_ttl: Duration::from_secs(86_400),
        attr_ttl: Duration::from_secs(86_400),
        content: Content::Keep,
    };
    /// For what others may change without telling.
    pub const SHARED: Self = Self {
        entry_ttl: Duration::from_secs(1),
        negative_ttl: Duration::ZERO,
        attr_ttl: Duration::from_secs(1),
        content: Content::Open,
    };
    /// For what is made anew at each open and each look.
    pub const LIVE: Self = Self {
        entry_ttl: Duration::ZERO,
        negative_ttl: Duration::ZERO,
        attr_ttl: Duration::ZERO,
        content: Content::Direct,
    };
    /// For files whose reads wait.
    pub const STREAM: Self = Self { content: Content::Stream, ..Self::LIVE };
}

/// Decides what the kernel may keep of each node.
pub type Policy = Arc<dyn Fn(&dyn Node) -> Caching + Send + Sync>;
