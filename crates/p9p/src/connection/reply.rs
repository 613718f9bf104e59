//! A reply, parsed where it came to; its buffer is kept for the next.

use super::call::Buffer;
use super::{Called, Connection};
use crate::client::ClientError;
use crate::errno::Errno;
use crate::message::{Reply, Tag};

/// A reply as it came.
pub(super) struct Answered {
    connection: Connection,
    buffer: Option<Buffer>,
    tag: Tag,
}

impl Answered {
    /// The reply to the call with this tag.
    pub fn new(connection: &Connection, buffer: Buffer, tag: Tag) -> Self {
        Self { connection: connection.clone(), buffer: Some(buffer), tag }
    }

    /// Takes from the reply what `expect` finds in it.
    pub fn expect<T>(&self, expect: impl FnOnce(&Reply<'_>) -> Option<T>) -> Called<T> {
        let bytes = self.buffer.as_ref().map_or(&[][..], |buffer| &buffer.bytes[..buffer.len]);
        let (_, reply) = Reply::parse(bytes, self.connection.inner.dialect)?;
        match reply {
            Reply::Lerror { errno } => Err(ClientError::Refused(Errno(errno))),
            Reply::Error { text, errno } => Err(ClientError::from_error(text, errno.0)),
            reply => {
                let unexpected = ClientError::Unexpected { code: reply.code(), tag: self.tag.0 };
                expect(&reply).ok_or(unexpected)
            }
        }
    }
}

impl Drop for Answered {
    fn drop(&mut self) {
        if let Some(buffer) = self.buffer.take() {
            self.connection.inner.keep(buffer.bytes);
        }
    }
}
