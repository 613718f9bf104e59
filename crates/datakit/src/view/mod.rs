//! The tree that is published: one file for each kind of directory in it.

pub(crate) mod attached;
pub(crate) mod branch;
mod debug;
mod directory;
mod item;
mod listing;
pub(crate) mod node;
mod remote;
mod snapshot;
mod stream;
mod text;
mod transaction;
mod tree;
mod watch;
mod work;

use std::sync::Arc;

use self::attached::Attached;
use self::branch::Branches;
use self::directory::Fixed;
use self::node::ViewNode;

/// The root of a new attach.
pub(crate) fn root(attached: Attached) -> Arc<ViewNode> {
    let attached = Arc::new(attached);
    let root = Fixed::new(&attached)
        .directory("branch", Branches::new(&attached))
        .directory("trees", snapshot::trees(&attached))
        .directory("commits", snapshot::commits(&attached))
        .directory("snapshots", snapshot::snapshots(&attached))
        .directory("remotes", remote::Remotes::new(&attached))
        .directory("debug", debug::debug(&attached));
    ViewNode::root(attached, Arc::new(root))
}
