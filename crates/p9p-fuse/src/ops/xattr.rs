//! Extended attributes.

use p9p::Errno;
use p9p::filesystem::XattrFlags;

use crate::abi::op;
use crate::reply::Reply;
use crate::session::{Request, Session};

pub(super) fn answer(session: &Session, mut request: Request<'_>, reply: &mut Reply) -> Result<(), Errno> {
    let node = session.inodes.node(request.header.node)?;
    let body = &mut request.body;
    match request.header.opcode {
        op::SETXATTR => {
            let (size, flags) = (body.u32()?, body.u32()?);
            let name = body.name()?;
            node.set_xattr(name, Some(body.bytes(size as usize)?), XattrFlags(flags))
        }
        op::REMOVEXATTR => node.set_xattr(body.name()?, None, XattrFlags::REPLACE),
        op::GETXATTR => {
            let size = body.u32()?;
            body.skip(4)?;
            answer_value(size, &node.xattr(body.name()?)?, reply)
        }
        _ => {
            let size = body.u32()?;
            answer_value(size, &node.xattr_names()?, reply)
        }
    }
}

/// The value, or with no room for any its size.
fn answer_value(size: u32, value: &[u8], reply: &mut Reply) -> Result<(), Errno> {
    if size == 0 {
        reply.u32(u32::try_from(value.len()).map_err(|_| Errno::E2BIG)?);
        reply.u32(0);
    } else if value.len() > size as usize {
        return Err(Errno::ERANGE);
    } else {
        reply.extend(value);
    }
    Ok(())
}
