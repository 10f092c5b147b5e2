"""Which TensorRT engines a robot may load: a list that its own user cannot write.

Engines are built on the robot, after its bundle was signed, so no signature covers them. `harmowam build`, run by root,
writes their hashes into the list that `[trust] engines` of a robot file names. At a run every engine has to stand there
for the ONNX file that the signed manifest names, and the list has to be out of reach of the user that runs.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from common.files import write_whole
from common.schema import Digest, Malformed, Name, Shape, parse_json, read_bounded, shaped
from runtime.engines.onnx import EngineError
from runtime.signing import Trust

MOST_BYTES = 1024 * 1024  # of a list


class UntrustedEngine(EngineError):
    """An engine that must not be loaded, however well it would run; one sentence and the next step."""


class ListedEngine(Shape, frozen=True):
    """The engine's name, and the hash of the ONNX file that it was built from: an engine of another bundle is not taken
    for it."""

    engine: Name
    onnx_sha256: Digest


class EngineList(Shape, frozen=True):
    """`engines`: by the SHA-256 of the engine's file."""

    engines: Annotated[dict[Digest, ListedEngine], Meta(max_length=10_000)]


def require_listed(trust: Trust, name: str, onnx_sha256: str, sha256: str) -> None:
    """Raises UntrustedEngine unless the engine `name` with the file hash `sha256`, built from the ONNX file of that
    hash, is one that `trust` lists, in a list that this process's user cannot write."""
    if trust.engines is None:
        raise UntrustedEngine(
            "[trust] of the robot file names no list of engines, and without one none of TensorRT is loaded: add "
            'engines = "/etc/harmowam/engines.json" there, or choose --engine cpu.'
        )
    if why := reach(trust.engines):
        raise UntrustedEngine(f"the list of engines {trust.engines} protects nothing, for {why}.")
    entry = _read(trust.engines).engines.get(sha256)
    if entry != ListedEngine(name, onnx_sha256):
        raise UntrustedEngine(
            f"the TensorRT engine {name} is not one that {trust.engines} lists: build it again with "
            "`sudo harmowam build BUNDLE --robot ROBOT`, or choose --engine cpu."
        )


def reach(file: Path) -> str:
    """Why this process's user could change what `file` says, with the next step; "" where it cannot. Looks at owner and
    mode of the file and of every folder above it: who may write a folder may exchange what lies in it."""
    if os.geteuid() == 0:
        return "root may write everything: start as another user"
    if (real := os.path.realpath(file)) != os.path.abspath(file):
        return f"it is reached through a link: name {real} in [trust] engines"
    for path in _upwards(file):
        try:
            found = path.lstat()
        except OSError as e:
            return f"{path} cannot be looked at ({e.strerror}): run `sudo harmowam build BUNDLE --robot ROBOT`"
        mend = f"run `sudo chown root:root {path} && sudo chmod go-w {path}`"
        if found.st_uid == os.geteuid():
            return f"{path} belongs to the user that runs: {mend}"
        sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX  # others' files stay, as in /tmp
        if found.st_mode & 0o022 and not sticky:
            return f"{path} may be written by more than its owner: {mend}"
        if os.access(path, os.W_OK, effective_ids=True) and not sticky:  # by an access control list
            return f"{path} may be written by the user that runs: {mend}"
    return ""


def _upwards(file: Path) -> Iterator[Path]:
    here = Path(os.path.abspath(file))
    yield here
    yield from here.parents


def _read(file: Path) -> EngineList:
    """Raises UntrustedEngine for a list that cannot be read."""
    try:
        return shaped(parse_json(read_bounded(file, MOST_BYTES)), EngineList)
    except (OSError, Malformed) as e:
        why = e.strerror if isinstance(e, OSError) else e
        raise UntrustedEngine(
            f"the list of engines {file} cannot be used ({why}): remove it, and run "
            "`sudo harmowam build BUNDLE --robot ROBOT`."
        ) from e


def require_writable(trust: Trust) -> None:
    """Raises UntrustedEngine before a build whose engines could not be listed."""
    if trust.engines is None:
        raise UntrustedEngine(
            "[trust] of the robot file names no list of engines, and without one none that is built here would be "
            'loaded: add engines = "/etc/harmowam/engines.json" there.'
        )
    there = next(p for p in _upwards(trust.engines) if p.exists())
    if not os.access(there, os.W_OK, effective_ids=True):
        raise UntrustedEngine(
            f"the engines that are built here have to be listed in {trust.engines}, which this user may not write: run "
            "`sudo harmowam build BUNDLE --robot ROBOT`."
        )


def add(file: Path, engines: dict[str, dict[str, Any]]) -> None:
    """Add the `engines` of a build's listing (`runtime.engines.built.LISTING`) to the list `file`, which is made where
    there is none. Raises UntrustedEngine where it cannot be read or written; the list is then as it was."""
    known = _read(file).engines if file.exists() else {}
    rows = {sha: {"engine": e.engine, "onnx_sha256": e.onnx_sha256} for sha, e in known.items()}
    rows |= {e["sha256"]: {"engine": name, "onnx_sha256": e["onnx_sha256"]} for name, e in engines.items()}
    try:
        write_whole(file, json.dumps({"engines": rows}, indent=1, sort_keys=True) + "\n")
    except OSError as e:
        raise UntrustedEngine(
            f"the list of engines {file} cannot be written ({e.strerror}): run it with sudo, or name another file in "
            "[trust] engines."
        ) from e
