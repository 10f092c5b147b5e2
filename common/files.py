"""Whole-file writes: a file has its new content or its old one, never a part. And why a file does not open. In the
lowest package because all packages read and write files."""

from __future__ import annotations

import os
import pwd
import shlex
import tempfile
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, content: bytes | str | Iterable[str], mode: int = 0o644) -> None:
    """Write a file beside `path`, fsync it, rename it, fsync the folder: after a power cut, a kill or on a full disk,
    `path` has the old or the new content.

    `content` may be an iterable of pieces, where the whole would take too much memory. The folder is created if needed.
    Raises OSError and then leaves nothing beside `path` (a kill leaves `.NAME.*.partial`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial")
    try:
        with os.fdopen(handle, "wb") as f:
            if isinstance(content, bytes):
                f.write(content)
            else:
                f.writelines(piece.encode() for piece in ([content] if isinstance(content, str) else content))
            f.flush()
            os.fsync(f.fileno())
        os.chmod(partial, mode)
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    sync(path.parent)


def link_whole(path: Path, target: str) -> None:
    """Make `path` a symbolic link to `target`, or exchange the link that is there, in one step; fsync the folder.
    Raises OSError (a kill leaves `.NAME.partial`)."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    os.replace(partial, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """fsync a file or a folder: what was written, renamed or removed there outlasts a power cut. Raises OSError."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def must_open(path: Path) -> None:
    """Raises OSError, with its file, where `path` does not open for reading. For before a library that takes whatever
    goes wrong for a file that is absent or damaged."""
    with open(path, "rb"):
        pass


def barred(path: str | Path) -> str:
    """One sentence where this process may not read the file or folder at `path`, or not enter a folder above it, and
    the command that allows it; "" where it may, and for devices, sockets and what is not there."""
    real = Path(os.path.realpath(path))
    for at in (*reversed(real.parents), real):
        if not os.path.lexists(at):
            return ""
        folder = at.is_dir()
        if at == real and not folder and not at.is_file():
            return ""
        need = (os.X_OK if folder else 0) | (os.R_OK if at == real else 0)
        if not os.access(at, need):
            break
    else:
        return ""
    user, owner = os.geteuid(), at.stat().st_uid
    who, how = ("u", "chmod") if user == owner else ("a", "sudo chmod")
    change = f"{how} -R {who}+rX" if folder and at == real else f"{how} {who}+{'x' if folder else 'r'}"
    other = "" if user == owner else f", or run this as its owner, {_named(owner)}"
    verb = "read" if at == real else "entered"
    return f"{at} may not be {verb} by the user {_named(user)}: run `{change} {shlex.quote(str(at))}`{other}."


def _named(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
