"""Files: the old one or the new one, whatever happens in between, and one line that names the path."""

import errno
import mmap
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from replicate import files

OLD, NEW = "old\n" * 2000, "new\n" * 3000
SOURCE = Path(files.__file__)
# Writers in processes of their own, without the package's imports. Each says who it is and waits, with no system call
# that could be counted, until the flag (one byte of a file) is up.
WRITER = """
import ctypes, importlib.util, mmap, os, sys
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)  # strace may attach, where only parents may
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
flag = mmap.mmap(os.open(sys.argv[2], os.O_RDWR), 1)
while word := sys.stdin.readline().strip():
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        while not flag[0]:
            pass
        try:
            files.write_text(files.Path(word), "new\\n" * 3000)
        except OSError as error:
            print(error, flush=True)
            os._exit(1)
        os._exit(0)
    print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def target(tmp_path):
    """A file that exists."""
    path = tmp_path / "there" / "record.json"
    path.parent.mkdir()
    path.write_text(OLD)
    return path


def parts(path):
    return [p.name for p in path.parent.iterdir() if p.name.endswith(".part")]


# --- Killed at every system call ---------------------------------------------------------------------------------


@pytest.fixture
def write_traced(tmp_path):
    """Writes under strace's ``injection``: the writer's status (-9 if killed), what it said, and the calls it made."""
    (tmp_path / "flag").write_bytes(b"\0")
    with (tmp_path / "flag").open("r+b") as handle:
        flag = mmap.mmap(handle.fileno(), 1)
    command = [sys.executable, "-I", "-S", "-u", "-c", WRITER, str(SOURCE), str(tmp_path / "flag")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def write(target, injection):
        flag[0] = 0
        process.stdin.write(f"{target}\n")
        pid = process.stdout.readline().strip()
        strace = subprocess.Popen(
            ["strace", "-p", pid, "-e", f"inject={injection}"], stderr=subprocess.PIPE, text=True
        )
        attached = strace.stderr.readline()
        flag[0] = 1
        said = []
        while not (line := process.stdout.readline()).startswith("status"):
            said.append(line.strip())
        calls = re.findall(r"^(\w+)\(", strace.communicate()[1], re.MULTILINE)
        if "attached" not in attached:
            pytest.skip(f"strace cannot attach here: {attached.strip()}")
        return int(line.split()[1]), said, calls

    yield write
    process.kill()
    process.communicate()


needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


@needs_strace
def test_killed_at_every_system_call_of_a_write_the_old_file_or_the_new_one_is_there(target, write_traced):
    """strace counts each kind of call by itself: one untroubled write says how many there are of which kind."""

    def before():
        target.write_text(OLD)
        for part in parts(target):
            (target.parent / part).unlink()
        (target.parent / f".{target.name}.dead.part").write_text("what a killed writer left")

    before()
    status, _, calls = write_traced(target, "fsync:signal=SIGCONT")
    assert status == 0
    found = []
    for i, name in enumerate(calls):
        before()
        status, *_ = write_traced(target, f"{name}:signal=SIGKILL:when={calls[: i + 1].count(name)}")
        assert status == -signal.SIGKILL
        found.append(target.read_text())
        files.write_text(target, NEW)
        assert parts(target) == []  # what the dead left was cleared by the next one
    assert {"openat", "write", "fsync", "rename", "unlink"} <= set(calls)
    assert set(found) == {OLD, NEW}
    assert found == sorted(found, reverse=True)  # once the new file is there it stays


DISK = ["write:error=ENOSPC", "fsync:error=EIO", "rename:error=EIO", "openat:error=EROFS"]


@needs_strace
@pytest.mark.parametrize("injection", DISK)
def test_an_error_of_the_disk_is_one_line_and_the_old_file_stays(target, write_traced, injection):
    status, said, _ = write_traced(target, f"{injection}:when=1")
    assert status == 1
    assert len(said) == 1
    assert str(target) in said[0]
    assert target.read_text() == OLD
    assert parts(target) == []


class _Cut:
    """Counts calls into ``os`` and dies, as a killed process does, at the ``when``-th."""

    NAMES = ("open", "fdopen", "fsync", "replace", "unlink", "close", "fchmod", "fstat", "listdir", "mkdir")

    def __init__(self, monkeypatch, when):
        self.left = when
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, call):
        def cut(*args, **options):
            self.left -= 1
            if self.left == 0:
                os._exit(9)
            return call(*args, **options)

        return cut


def in_a_child(work):
    """The exit status of ``work`` in a forked process."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_process_that_dies_between_any_two_steps_leaves_the_old_file_or_the_new_one(target, monkeypatch):
    """The stand-in for the test above where strace is missing."""

    def work(when):
        with pytest.MonkeyPatch.context() as patch:
            _Cut(patch, when)
            files.write_text(target, NEW)

    found = []
    for when in range(1, 100):
        target.write_text(OLD)
        status = in_a_child(lambda when=when: work(when))
        found.append(target.read_text())
        if status == 0:
            break
    assert set(found) == {OLD, NEW}
    assert len(found) > 6
    files.write_text(target, NEW)
    assert parts(target) == []


def test_a_half_written_file_is_never_seen(target):
    def work():
        with files.replacing(target) as handle:
            handle.write(NEW[:4000].encode())
            handle.flush()
            os._exit(9)

    assert in_a_child(work) == 9
    assert target.read_text() == OLD
    assert len(parts(target)) == 1
    files.write_text(target, NEW)
    assert parts(target) == []


def test_file_and_folder_reach_the_disk_in_order(target, monkeypatch):
    """Content before the name, the name before we say it is done; a crash of the machine allows no other order."""
    order = []
    sync, replace = os.fsync, os.replace

    def remember(descriptor):
        order.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", remember)
    monkeypatch.setattr(os, "replace", lambda *args: (order.append("rename"), replace(*args)))
    files.write_text(target, NEW)
    assert order == ["file", "rename", "folder"]


# --- Full, broken, read-only -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fsync", "replace", "open"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_any_failing_step_is_one_line_and_the_old_file_stays(target, monkeypatch, name, number):
    def fail(*args, **options):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        with pytest.raises(OSError, match=re.escape(str(target))) as caught:
            files.write_text(target, NEW)
    assert caught.value.errno == number
    assert "\n" not in str(caught.value)
    assert target.read_text() == OLD
    assert parts(target) == []


def test_a_block_that_fails_leaves_nothing(target):
    with pytest.raises(KeyError), files.replacing(target) as handle:  # noqa: PT012
        handle.write(b"half")
        raise KeyError
    assert target.read_text() == OLD
    assert parts(target) == []


def mounted(tmp_path, options, script):
    """Runs ``script`` with a small file system at ``tmp_path/disk``, which vanishes with the process."""
    disk = tmp_path / "disk"
    disk.mkdir()
    shell = f"mount -t tmpfs -o {options} tmpfs {disk} && exec {sys.executable} -I -S -c '{script}' {SOURCE} {disk}"
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    done = subprocess.run(["unshare", "-m", "sh", "-c", shell], capture_output=True, text=True)
    if "mount:" in done.stderr:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    return done


LOAD = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
path = files.Path(sys.argv[2]) / "record.json"
"""


@pytest.mark.skipif(not shutil.which("unshare"), reason="unshare is not installed")
def test_a_full_disk_keeps_the_old_file_and_leaves_no_part(tmp_path):
    script = (
        LOAD
        + """
files.write_text(path, "old")
try:
    files.write_text(path, "new" * 1000000)
except OSError as error:
    print(error)
print(path.read_text(), os.listdir(path.parent))
"""
    )
    done = mounted(tmp_path, "size=2m", script)
    line, rest = done.stdout.strip().splitlines()
    assert "No space left" in line
    assert "record.json" in line
    assert rest == "old ['record.json']"


@pytest.mark.skipif(not shutil.which("unshare"), reason="unshare is not installed")
def test_a_full_disk_is_named_before_any_work(tmp_path):
    """Where a file can be made, of no bytes."""
    script = (
        LOAD
        + """
try:
    files.write_text(path.parent / "fill", "new" * 1000000)
except OSError:
    handle = open(path.parent / "fill", "wb", buffering=0)
    while handle.write(bytes(4096)) == 4096 and os.statvfs(path.parent).f_bfree:
        pass
open(path.parent / "empty", "w").close()
try:
    files.require_writable(path.parent)
except OSError as error:
    print(error, sorted(os.listdir(path.parent)))
"""
    )
    (line,) = mounted(tmp_path, "size=2m", script).stdout.strip().splitlines()
    assert "No space left" in line
    assert line.endswith("['empty', 'fill']")


@pytest.mark.skipif(not shutil.which("unshare"), reason="unshare is not installed")
def test_a_read_only_folder_is_named_before_any_work(tmp_path):
    script = (
        LOAD
        + """
files.write_text(path, "old")
os.system(f"mount -o remount,ro {path.parent}")
for work in (lambda: files.require_writable(path.parent), lambda: files.write_text(path, "new")):
    try:
        work()
    except OSError as error:
        print(error)
print(path.read_text())
"""
    )
    lines = mounted(tmp_path, "size=2m", script).stdout.strip().splitlines()
    assert len(lines) == 3
    assert all("Read-only" in line and "disk" in line for line in lines[:2])
    assert lines[2] == "old"


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    files.require_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        files.require_writable(tmp_path / "file")


# --- Company -----------------------------------------------------------------------------------------------------


def test_writers_with_one_process_number_do_not_disturb_each_other(target, monkeypatch):
    """Two containers on one volume: equal process numbers, one target, and every read is a whole file."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    texts = [letter * 50_000 for letter in "ab"]
    errors, seen = [], set()

    def write(text):
        for _ in range(60):
            try:
                files.write_text(target, text)
            except OSError as error:
                errors.append(error)

    target.write_text(texts[0])
    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        seen.add(target.read_text())
    assert errors == []
    assert seen <= set(texts)
    assert parts(target) == []


def test_a_live_writers_part_is_not_cleared(target):
    with files.replacing(target) as handle:
        handle.write(b"mine")
        files.write_text(target, NEW)
        assert len(parts(target)) == 1
    assert target.read_text() == "mine"


def test_a_part_taken_for_a_dead_writers_is_made_again(target, monkeypatch):
    """The moment between making the part and locking it."""
    lock, calls = files._lock, []

    def late(descriptor, *, wait):
        calls.append(wait)
        if calls == [True]:
            for part in target.parent.glob(".*.part"):
                part.unlink()
        return lock(descriptor, wait=wait)

    monkeypatch.setattr(files, "_lock", late)
    files.write_text(target, NEW)
    assert target.read_text() == NEW


def test_permissions_are_those_of_a_plain_open(tmp_path):
    before = os.umask(0o027)
    try:
        (tmp_path / "plain").write_text("")
        files.write_text(tmp_path / "ours", "")
        assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
        (tmp_path / "ours").chmod(0o604)
        files.write_text(tmp_path / "ours", "again")
        assert (tmp_path / "ours").stat().st_mode & 0o777 == 0o604
    finally:
        os.umask(before)
