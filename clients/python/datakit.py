"""A small client of DataKit over 9P2000.L, with nothing but the standard library.

    from datakit import DataKit

    dk = DataKit("tcp://localhost:5640")          # or unix:///run/datakit.sock
    main = dk.branch("main")
    with main.transaction("Move mail") as tx:     # commits at the end, gives up on an exception
        tx.write("hosts/mail", b"10.0.0.2\n")
    main.update(lambda tx: tx.write("n", b"1"))   # tried again while others change the same files
    for head in main.watch():
        print(head)

Every object is for one thread. A watch has a connection of its own; close() ends it, from any thread.
"""

import errno
import os
import random
import socket
import struct
import time
from urllib.parse import urlparse

_NOFID = 0xFFFFFFFF
_MSIZE = 256 * 1024
_IO_HEADER = 24
_O_WRONLY, _O_TRUNC, _O_DIRECTORY = 0o1, 0o1000, 0o200000
_RLERROR = 7
_TLOPEN, _TLCREATE, _TSYMLINK, _TREADDIR, _TMKDIR = 12, 14, 16, 40, 72
_TVERSION, _TATTACH, _TWALK, _TREAD, _TWRITE, _TCLUNK, _TREMOVE = 100, 104, 110, 116, 118, 120, 122


class DataKitError(Exception):
    """Something that DataKit, or the way to it, refused."""


class NotFound(DataKitError):
    """Nothing is there."""


class Conflict(DataKitError):
    """Others changed the same files. `paths` are those, where the server says so."""

    def __init__(self, message, paths=()):
        super().__init__(message)
        self.paths = list(paths)


class NotFastForward(DataKitError):
    """The branch has commits that would be lost."""


def _string(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<H", len(raw)) + raw


def _names(path):
    names = [name for name in path.split("/") if name]
    for name in names:
        if name in (".", "..") or "\0" in name or len(name.encode()) > 255:
            raise DataKitError(f"{path!r} is not a path")
    return names


class _Session:
    """A 9P2000.L session: one request at a time."""

    def __init__(self, url):
        self.url = url
        parsed = urlparse(url)
        if parsed.scheme == "tcp":
            self.socket = socket.create_connection((parsed.hostname, parsed.port or 5640))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        elif parsed.scheme in ("unix", "file"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(parsed.path)
        else:
            raise DataKitError(f"{url!r} is neither tcp://HOST:PORT nor unix://PATH")
        self.next_fid = 1
        self.free = []
        reply = self._call(_TVERSION, struct.pack("<I", _MSIZE) + _string("9P2000.L"), 0xFFFF)
        (self.msize,) = struct.unpack_from("<I", reply)
        (length,) = struct.unpack_from("<H", reply, 4)
        if reply[6 : 6 + length] != b"9P2000.L":
            raise DataKitError("the server does not speak 9P2000.L")
        self._call(_TATTACH, struct.pack("<II", 0, _NOFID) + _string("datakit") + _string("") + struct.pack("<I", _NOFID))

    def close(self):
        try:
            self.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.socket.close()

    def _receive(self, count):
        parts = []
        while count:
            part = self.socket.recv(min(count, 1 << 20))
            if not part:
                raise DataKitError("the server hung up")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _call(self, kind, body, tag=1):
        self.socket.sendall(struct.pack("<IBH", 7 + len(body), kind, tag) + body)
        size, answered, _ = struct.unpack("<IBH", self._receive(7))
        if not 7 <= size <= _MSIZE:
            raise DataKitError(f"the server sent a message of {size} bytes")
        reply = self._receive(size - 7)
        if answered == _RLERROR:
            (number,) = struct.unpack("<I", reply)
            raise OSError(number, os.strerror(number))
        if answered != kind + 1:
            raise DataKitError(f"the server answered type {answered} to type {kind}")
        return reply

    def _unused_fid(self):
        if self.free:
            return self.free.pop()
        self.next_fid += 1
        return self.next_fid - 1

    def walk(self, names):
        fid = self._unused_fid()
        at = 0
        try:
            for start in range(0, max(len(names), 1), 16):
                part = names[start : start + 16]
                body = struct.pack("<IIH", at, fid, len(part)) + b"".join(map(_string, part))
                (walked,) = struct.unpack_from("<H", self._call(_TWALK, body))
                if walked != len(part):
                    if walked:
                        self._why_stopped(names[: start + walked], names[start + walked])
                    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
                at = fid
        except Exception:
            if at == fid:
                self.clunk(fid)
            else:
                self.free.append(fid)
            raise
        return fid

    def _why_stopped(self, passed, name):
        """Asks for the name at which a walk stopped alone: only then is the answer an error."""
        reached = self.walk(passed)
        try:
            fid = self._unused_fid()
            try:
                self._call(_TWALK, struct.pack("<IIH", reached, fid, 1) + _string(name))
            except Exception:
                self.free.append(fid)
                raise
            self.clunk(fid)
        finally:
            self.clunk(reached)

    def clunk(self, fid, kind=_TCLUNK):
        try:
            self._call(kind, struct.pack("<I", fid))
        finally:
            self.free.append(fid)

    def open(self, fid, flags=0):
        self._call(_TLOPEN, struct.pack("<II", fid, flags))

    def read(self, fid, offset):
        reply = self._call(_TREAD, struct.pack("<IQI", fid, offset, self.msize - _IO_HEADER))
        return reply[4:]

    def write(self, fid, data):
        done = 0
        while True:
            part = data[done : done + self.msize - _IO_HEADER]
            if not part:
                return
            head = struct.pack("<IQI", fid, done, len(part))
            (count,) = struct.unpack("<I", self._call(_TWRITE, head + part))
            if not count:
                raise OSError(errno.EIO, "nothing was written")
            done += count

    # Files by path. What the server refuses is said with the path.

    def at(self, path, work):
        try:
            fid = self.walk(_names(path))
        except OSError as error:
            raise _refused(path, error) from None
        try:
            return work(fid)
        except OSError as error:
            raise _refused(path, error) from None
        finally:
            self.clunk(fid)

    def read_file(self, path):
        def work(fid):
            self.open(fid)
            parts, offset = [], 0
            while True:
                part = self.read(fid, offset)
                if not part:
                    return b"".join(parts)
                parts.append(part)
                offset += len(part)

        return self.at(path, work)

    def write_file(self, path, data, create=True):
        def replace(fid):
            self.open(fid, _O_WRONLY | (_O_TRUNC if create else 0))
            self.write(fid, data)

        def make(fid):
            body = struct.pack("<I", fid) + _string(_names(path)[-1]) + struct.pack("<III", _O_WRONLY, 0o644, 0)
            self._call(_TLCREATE, body)
            self.write(fid, data)

        try:
            self.at(path, replace)
        except NotFound:
            if not create:
                raise
            self.at("/".join(_names(path)[:-1]), make)

    def mkdir(self, path):
        names = _names(path)
        body = lambda fid: struct.pack("<I", fid) + _string(names[-1]) + struct.pack("<II", 0o755, 0)
        self.at("/".join(names[:-1]), lambda fid: self._call(_TMKDIR, body(fid)))

    def symlink(self, path, target):
        names = _names(path)
        body = lambda fid: struct.pack("<I", fid) + _string(names[-1]) + _string(target) + struct.pack("<I", 0)
        self.at("/".join(names[:-1]), lambda fid: self._call(_TSYMLINK, body(fid)))

    def remove(self, path):
        try:
            self.clunk(self.walk(_names(path)), _TREMOVE)
        except OSError as error:
            raise _refused(path, error) from None

    def list(self, path):
        def work(fid):
            self.open(fid, _O_DIRECTORY)
            found, offset = [], 0
            while True:
                reply = self._call(_TREADDIR, struct.pack("<IQI", fid, offset, self.msize - _IO_HEADER))
                at, end = 4, len(reply)
                if at == end:
                    return found
                while at < end:
                    _, _, _, offset, _, length = struct.unpack_from("<BIQQBH", reply, at)
                    at += 24
                    name = reply[at : at + length].decode(errors="surrogateescape")
                    at += length
                    if name not in (".", ".."):
                        found.append(name)

        return self.at(path, work)


def _refused(path, error):
    if error.errno == errno.ENOENT:
        return NotFound(f"{path}: not there")
    refusal = DataKitError(f"{path}: {error.strerror}")
    refusal.errno = error.errno
    return refusal


def _make(session, branch_root):
    """Makes a branch known, on this connection, that has no commit yet."""
    try:
        session.mkdir(branch_root)
    except DataKitError as error:
        if getattr(error, "errno", None) != errno.EEXIST:
            raise


class DataKit:
    """A connection to a server."""

    def __init__(self, url):
        self._session = _Session(url)
        self._session.at("branch", lambda fid: None)

    def close(self):
        self._session.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def branches(self):
        """The names of all branches."""
        names = self._session.list("branch")
        return [name.replace("%2F", "/").replace("%25", "%") for name in names]

    def branch(self, name):
        """A branch, which need not exist yet."""
        return Branch(self._session, name)

    def snapshot(self, commit):
        """A commit."""
        return Snapshot(self._session, commit)


class Tree:
    """Files to read, below a path of the server."""

    def __init__(self, session, root):
        self._session, self._root = session, root

    def read(self, path):
        return self._session.read_file(f"{self._root}/{path}")

    def list(self, path=""):
        return self._session.list(f"{self._root}/{path}")

    def has(self, path):
        try:
            self._session.at(f"{self._root}/{path}", lambda fid: None)
            return True
        except NotFound:
            return False


class Snapshot:
    """A commit: its tree, message and parents."""

    def __init__(self, session, commit):
        self._session, self.id = session, commit
        self.tree = Tree(session, f"snapshots/{commit}/ro")

    def message(self):
        return self._session.read_file(f"snapshots/{self.id}/msg").decode().removesuffix("\n")

    def parents(self):
        return self._session.read_file(f"snapshots/{self.id}/parents").decode().split()

    def diff(self, commit):
        """What changed from `commit` to this one, as pairs of `+`, `-` or `*` and a path."""
        text = self._session.read_file(f"snapshots/{self.id}/diff/{commit}").decode()
        return [tuple(line.split(" ", 1)) for line in text.splitlines()]


class Branch:
    """A branch."""

    def __init__(self, session, name):
        self._session, self.name = session, name
        # As a file's name: `/` and `%` are escaped as in URLs.
        self._root = "branch/" + name.replace("%", "%25").replace("/", "%2F")
        self.tree = Tree(session, f"{self._root}/ro")

    def _make(self):
        _make(self._session, self._root)

    def head(self):
        """The id of the commit it points to, or None."""
        try:
            return self._session.read_file(f"{self._root}/head").decode().strip() or None
        except NotFound:
            return None

    def fast_forward(self, commit):
        """Moves it to a commit that comes after its head."""
        self._make()
        try:
            self._session.write_file(f"{self._root}/fast-forward", commit.encode(), create=False)
        except NotFound:
            raise
        except DataKitError as error:
            raise NotFastForward(f"{self.name} cannot be fast-forwarded to {commit}: {error}") from None

    def delete(self):
        self._session.remove(self._root)

    def transaction(self, message=None):
        """Begins a transaction."""
        self._make()
        return Transaction(self._session, self._root, message)

    def update(self, change, message=None, attempts=20):
        """Has `change` change a transaction and commits it, again while others' changes conflict."""
        wait = 0.005
        for attempt in range(1, attempts + 1):
            transaction = self.transaction(message)
            try:
                change(transaction)
                return transaction.commit()
            except Conflict:
                if attempt == attempts:
                    raise
            finally:
                transaction.close()
            time.sleep(random.random() * wait)
            wait = min(wait * 2, 0.5)

    def watch(self, path=None):
        """Its head and every new one; or what is at a path, as `F-ID` or None, and whatever comes to be there."""
        if path is None:
            return Watch(self._session.url, self._root, "head.live")
        nodes = "".join(f"/{name}.node" for name in _names(path))
        return Watch(self._session.url, self._root, f"watch{nodes}/tree.live")


class Transaction(Tree):
    """Changes that nobody sees before commit()."""

    _count = 0

    def __init__(self, session, branch_root, message):
        Transaction._count += 1
        name = f"python-{os.getpid()}-{random.getrandbits(64):016x}-{Transaction._count}"
        self._branch_root = branch_root
        self._transaction = f"{branch_root}/transactions/{name}"
        super().__init__(session, f"{self._transaction}/rw")
        session.mkdir(self._transaction)
        self._open = True
        if message is not None:
            self.message(message)

    def message(self, text):
        self._session.write_file(f"{self._transaction}/msg", text.encode())

    def write(self, path, data):
        """Makes the content of a file `data`; missing directories are made."""
        data = data if isinstance(data, bytes) else data.encode()
        try:
            self._session.write_file(f"{self._root}/{path}", data)
        except NotFound:
            self.mkdir("/".join(_names(path)[:-1]))
            self._session.write_file(f"{self._root}/{path}", data)

    def mkdir(self, path):
        names = _names(path)
        for depth in range(1, len(names) + 1):
            try:
                self._session.mkdir("/".join([self._root, *names[:depth]]))
            except DataKitError as error:
                if getattr(error, "errno", None) != errno.EEXIST:
                    raise

    def symlink(self, path, target):
        self.mkdir("/".join(_names(path)[:-1]))
        self._session.symlink(f"{self._root}/{path}", target)

    def remove(self, path):
        self._session.remove(f"{self._root}/{path}")

    def merge(self, commit):
        """Merges a commit; returns the paths that conflict, to be written or removed before commit()."""
        self._session.write_file(f"{self._transaction}/merge", commit.encode(), create=False)
        return self.conflicts()

    def conflicts(self):
        try:
            return self._session.read_file(f"{self._transaction}/conflicts").decode().splitlines()
        except NotFound:
            return []

    def _ctl(self, command):
        self._session.write_file(f"{self._transaction}/ctl", command, create=False)

    def commit(self):
        """Commits and returns the branch's head. After a Conflict the transaction is still open."""
        try:
            self._ctl(b"commit")
        except DataKitError as error:
            try:
                said = self._session.read_file(f"{self._transaction}/ctl").decode()
            except DataKitError:
                said = str(error)
            paths = self.conflicts()
            if paths or "onflict" in said:
                raise Conflict(said.strip() or "others changed the same files", paths) from None
            raise
        self._open = False
        return self._session.read_file(f"{self._branch_root}/head").decode().strip()

    def close(self):
        """Gives it up, unless it was committed."""
        if self._open:
            self._open = False
            self._ctl(b"close")

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None and self._open:
                self.commit()
        finally:
            self.close()


class Watch:
    """Lines as they come, None for an empty one. Iteration ends with the branch, or with close()."""

    def __init__(self, url, branch_root, file):
        self._session = _Session(url)
        self._closed = False
        _make(self._session, branch_root)
        self._fid = self._session.walk(_names(f"{branch_root}/{file}"))
        self._session.open(self._fid)

    def close(self):
        self._closed = True
        self._session.close()

    def __iter__(self):
        offset, rest, was_empty = 0, b"", False
        while True:
            try:
                part = self._session.read(self._fid, offset)
            except (OSError, DataKitError):
                if self._closed:
                    return
                raise
            # One empty read follows each answer; two are the end.
            if not part and was_empty:
                return
            was_empty = not part
            offset += len(part)
            *lines, rest = (rest + part).split(b"\n")
            for line in lines:
                yield line.decode() or None
