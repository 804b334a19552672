"""Files that appear whole or not at all.

Whatever a run leaves behind (records, verdicts, tables, figures, the ladder's done-mark and its state) is written under
a name of its own beside the target, brought to the disk, and only then renamed. A kill, a crash of the machine, a full
disk or a broken one leave the old file or the new one, and never a mixture.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # no such locks there: parts that a kill leaves behind stay
    fcntl = None

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def write_text(path: Path, text: str) -> None:
    """Replaces ``path`` by ``text`` (UTF-8) in one step. ``OSError`` names the path, whose old file then stays."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces ``path`` by ``content`` in one step, like :func:`write_text`."""
    with replacing(path) as handle:
        handle.write(content)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``path`` when the block ends, and vanishes if the block fails.

    Permissions are those that a plain ``open`` would give: the old file's, or what the umask leaves.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_parts(path.parent, path.name)
        part, descriptor = _new_part(path)
        try:
            with os.fdopen(descriptor, "wb") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
                os.replace(part, path)  # before the lock goes with the descriptor, so that nobody clears it
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(part)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, f"cannot be written ({error.strerror or error})", str(path)) from None


def clear_parts(folder: Path, name: str = "") -> None:
    """Removes what killed writers of ``name`` (of any file, by default) left in ``folder``; live ones keep theirs."""
    start = f".{name}." if name else "."
    for found in os.listdir(folder):
        if found.startswith(start) and found.endswith(".part"):
            _clear(folder / found)


def sync_folder(folder: Path, *, contents: bool = False) -> None:
    """Brings the names in ``folder`` to the disk; with ``contents`` the files as well."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    files = [path for path in folder.iterdir() if path.is_file()] if contents else []
    for path in [*files, folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that cannot say so of folders
                raise
        finally:
            os.close(descriptor)


def require_writable(folder: str | os.PathLike) -> None:
    """Makes ``folder`` if need be and writes there; ``OSError`` names it, before any work is done in vain."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part, descriptor = _new_part(folder / "writable")
        try:
            os.write(descriptor, b"probe")  # a full disk may let a file be made and nothing be written
        finally:
            os.close(descriptor)
            os.unlink(part)
    except OSError as error:
        raise OSError(error.errno, f"no files can be made here ({error.strerror})", str(folder)) from None


def _new_part(path: Path) -> tuple[Path, int]:
    """A new locked file beside ``path``, and its descriptor."""
    mode = _mode(path)
    while True:
        # As mkstemp does, so that no two writers share a name, on whatever machine and with whatever process number;
        # but with the permissions of a plain open.
        part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
        descriptor = os.open(part, _NEW, 0o666)
        if mode is not None:
            os.fchmod(descriptor, mode)
        _lock(descriptor, wait=True)
        if os.fstat(descriptor).st_nlink:  # else it was taken for a dead writer's before the lock was there
            return part, descriptor
        os.close(descriptor)


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode & 0o777
    except OSError:
        return None


def _clear(part: Path) -> None:
    # The lock goes when its writer dies, whatever it dies of, and not before. No clock, no process numbers.
    with contextlib.suppress(OSError):
        descriptor = os.open(part, os.O_RDWR)
        try:
            if _lock(descriptor, wait=False):
                os.unlink(part)
        finally:
            os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> bool:
    """Locks the open file; False where somebody holds it, or where the file system knows no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
