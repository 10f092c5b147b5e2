"""Whole-file writes: a file has its new content or its old one, never a part. In the lowest package because all
packages write files."""

from __future__ import annotations

import os
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
