//! Error numbers as Linux on x86-64 and arm64 has them: what `Rlerror` carries, whatever the server runs on.

use std::cell::RefCell;
use std::fmt;

/// Longest text that goes with an error, in bytes.
const TEXT_BYTES_MAX: usize = 1024;

thread_local! {
    /// The text that this thread gave to the last error, until the server takes it.
    static TEXT: RefCell<Option<(Errno, String)>> = const { RefCell::new(None) };
}

/// A Linux error number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(pub u32);

macro_rules! errnos {
    ($($name:ident = $number:literal $text:literal,)*) => {
        #[expect(missing_docs, reason = "the names are errno(3)'s")]
        impl Errno {
            $(pub const $name: Self = Self($number);)*

            /// The error that these words are, in whatever case; what strerror(3) says.
            pub fn from_text(text: &str) -> Option<Self> {
                [$((Self::$name, $text),)*]
                    .into_iter()
                    .find(|(_, known)| known.eq_ignore_ascii_case(text))
                    .map(|(errno, _)| errno)
            }

            fn describe(self) -> Option<(&'static str, &'static str)> {
                match self.0 {
                    $($number => Some((stringify!($name), $text)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EPERM = 1 "operation not permitted",
    ENOENT = 2 "no such file or directory",
    EINTR = 4 "interrupted system call",
    EIO = 5 "input/output error",
    ENXIO = 6 "no such device or address",
    E2BIG = 7 "argument list too long",
    EBADF = 9 "bad file descriptor",
    EAGAIN = 11 "resource temporarily unavailable",
    ENOMEM = 12 "cannot allocate memory",
    EACCES = 13 "permission denied",
    EBUSY = 16 "device or resource busy",
    EEXIST = 17 "file exists",
    EXDEV = 18 "invalid cross-device link",
    ENOTDIR = 20 "not a directory",
    EISDIR = 21 "is a directory",
    EINVAL = 22 "invalid argument",
    ENFILE = 23 "too many open files in system",
    EMFILE = 24 "too many open files",
    EFBIG = 27 "file too large",
    ENOSPC = 28 "no space left on device",
    EROFS = 30 "read-only file system",
    EMLINK = 31 "too many links",
    ERANGE = 34 "numerical result out of range",
    ENAMETOOLONG = 36 "file name too long",
    ENOLCK = 37 "no locks available",
    ENOSYS = 38 "function not implemented",
    ENOTEMPTY = 39 "directory not empty",
    ELOOP = 40 "too many levels of symbolic links",
    ENODATA = 61 "no data available",
    EPROTO = 71 "protocol error",
    EOVERFLOW = 75 "value too large for defined data type",
    EMSGSIZE = 90 "message too long",
    EPROTONOSUPPORT = 93 "protocol not supported",
    EOPNOTSUPP = 95 "operation not supported",
    ETIMEDOUT = 110 "connection timed out",
    ESTALE = 116 "stale file handle",
    EDQUOT = 122 "disk quota exceeded",
}

impl Errno {
    /// Says more than the number: clients of 9P2000 and .u are answered with `text`, those of .L with the number alone.
    ///
    /// The text is kept for this thread until the call of the service that returns the errno comes back to the server,
    /// as `werrstr` does on Plan 9; the last one counts, and one whose errno is not returned after all is dropped.
    #[must_use]
    pub fn with_text(self, text: impl Into<String>) -> Self {
        let mut text = text.into();
        let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
        text.truncate(end.unwrap_or(0));
        TEXT.with(|last| *last.borrow_mut() = Some((self, text)));
        self
    }

    /// Takes the text that this thread gave to this error, if it was the last that got one.
    pub fn take_text(self) -> Option<String> {
        TEXT.with(|last| last.borrow_mut().take()).filter(|(errno, _)| *errno == self).map(|(_, text)| text)
    }

    /// Drops a text that nobody took.
    pub(crate) fn forget_text() {
        TEXT.with(|last| *last.borrow_mut() = None);
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.describe() {
            Some((_, text)) => f.write_str(text),
            None => write!(f, "error {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.describe() {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "Errno({})", self.0),
        }
    }
}

impl std::error::Error for Errno {}

#[cfg(target_os = "linux")]
impl From<rustix::io::Errno> for Errno {
    fn from(errno: rustix::io::Errno) -> Self {
        // The kernel's numbers are positive and below 4096.
        Self(errno.raw_os_error().unsigned_abs())
    }
}
