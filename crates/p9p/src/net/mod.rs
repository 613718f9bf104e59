//! Sockets, and the server loop over them: many connections, few threads.
//!
//! [`Server`] waits on all connections with one epoll instance. A worker takes what a connection sent, hands all requests
//! but the first to the others, and answers that one itself; so a client with one request at a time is served without a
//! change of threads, and one with many by all of them. A request that is [`Pending`](std::task::Poll::Pending) is put
//! aside and holds no thread. Requests that block do hold one: when no thread is left to wait for events and nothing
//! moves, more are started, up to [`ServerOptions::threads_max`].
//!
//! Memory of a connection is bounded: requests received and replies not yet taken by the client are limited in bytes, and
//! beyond that its requests wait in the socket.

mod address;
mod connection;
mod job;
mod server;
mod socket;
mod watch;

pub use address::{Address, AddressError, CID_ANY, CID_HOST, PORT_DEFAULT};
pub use server::{Server, ServerOptions};
pub use socket::{Listener, Socket, SocketError};
