//! A typed client of DataKit over 9P.
//!
//! [`DataKit`] is a connection to a server. From it come branches ([`Branch`]), transactions on them ([`Transaction`]), the
//! trees of commits ([`Snapshot`], [`Tree`]), watches ([`Watch`]) and remotes ([`Remote`]). All calls block, and many
//! threads may call at once over one connection, which clones share: a watch that waits does not hold up a commit.
//!
//! ```no_run
//! # fn main() -> Result<(), datakit_client::Error> {
//! let datakit = datakit_client::DataKit::connect("unix:///run/datakit.sock")?;
//! let main = datakit.branch("main")?;
//!
//! // Retried while others change the same files.
//! main.update(|transaction| {
//!     transaction.write("hosts/mail", b"10.0.0.2\n")?;
//!     transaction.set_message("Move mail")
//! })?;
//!
//! for head in main.watch_head()? {
//!     println!("{:?}", head?);
//! }
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod branch;
mod error;
mod id;
mod path;
mod remote;
mod session;
mod transaction;
mod tree;
mod update;
mod watch;

pub use branch::{Branch, Change};
pub use error::Error;
pub use id::{CommitId, Node};
pub use remote::Remote;
pub use session::DataKit;
pub use transaction::Transaction;
pub use tree::{Entry, Kind, Snapshot, Tree};
pub use update::Retries;
pub use watch::{Event, From, Stopper, Watch};
