"""Files that are there whole, or as they were before. In the lowest room because all of them write some."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, content: bytes | str | Iterable[str], mode: int = 0o644) -> None:
    """Beside, fsync, rename, fsync the folder: after a power cut, a kill or on a full disk there is the old file or the
    new one.

    `content` may come in pieces, where all of it at once would be too much memory. The folder is made if need be.
    Raises OSError; nothing is left beside then (a kill leaves `.NAME.*.partial`).
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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
