//! Whole directories: all entries, and the attributes of each.

use super::operations::attributes_in;
use super::{Call, Called, Connection};
use crate::client::{ClientError, Listed};
use crate::errno::Errno;
use crate::message::{Fid, Reply, Request, WalkNames};
use crate::stat::Attributes;

/// Walks of one listing under way.
const WALKS_AT_ONCE: usize = 64;

#[expect(clippy::missing_errors_doc, reason = "all fail with ClientError, as its variants say")]
impl Connection {
    /// All entries of a directory that is open, however many messages they take, without `.` and `..`.
    pub fn list(&self, fid: Fid) -> Called<Vec<Listed>> {
        let mut all: Vec<Listed> = Vec::new();
        let mut offset = 0;
        loop {
            let piece = self.read_directory(fid, offset, u32::MAX)?;
            let Some(last) = piece.last() else { return Ok(all) };
            if last.offset == offset {
                // A server that goes in circles would never end.
                return Err(ClientError::Refused(Errno::EIO));
            }
            offset = last.offset;
            all.extend(piece.into_iter().filter(|entry| !matches!(&*entry.name, b"." | b"..")));
        }
    }

    /// Walks from a directory to each of these names and reads its attributes, many at a time, so that the time to the
    /// server and back is waited for a few times only.
    pub fn walk_each(&self, directory: Fid, names: &[&[u8]]) -> Vec<Called<(Fid, Attributes)>> {
        let mut found = Vec::with_capacity(names.len());
        for names in names.chunks(WALKS_AT_ONCE) {
            let start = |name: &&[u8]| {
                let new_fid = self.fresh_fid();
                let names = WalkNames::from_slice(std::slice::from_ref(name));
                let request = names.map(|names| Request::Walk { fid: directory, new_fid, names });
                (new_fid, request.map_err(ClientError::from).and_then(|request| self.start(&request)))
            };
            let walks: Vec<_> = names.iter().map(start).collect();
            let finish = |(fid, walk): (Fid, Called<Call>)| {
                let arrived = |reply: &Reply<'_>| matches!(reply, Reply::Walk { .. }).then_some(());
                self.keep_fid(fid, walk.and_then(|walk| walk.wait()?.expect(arrived)))
            };
            let walked: Vec<_> = walks.into_iter().map(finish).collect();
            let ask = |fid: Called<Fid>| fid.map(|fid| (fid, self.start_attributes(fid)));
            let asked: Vec<_> = walked.into_iter().map(ask).collect();
            found.extend(asked.into_iter().map(|asked| {
                let (fid, attributes) = asked?;
                match attributes.and_then(|call| call.wait()?.expect(attributes_in)) {
                    Ok(attributes) => Ok((fid, attributes)),
                    Err(error) => {
                        self.forget(fid);
                        Err(error)
                    }
                }
            }));
        }
        found
    }
}
