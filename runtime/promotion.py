"""The bundle that a robot runs, and the last good one: a folder that is changed in one step.

    current  -> .state/current     what `harmowam run --bundle FOLDER/current` opens
    previous -> .state/previous    what `rollback` makes current
    .state   -> .state-N           exchanged whole, by one rename: the only step that counts
    bundles/N-DIGEST/              copies

A kill or a power cut at any instant leaves the old pair or the new one. What an interrupted step left behind is removed
by the next.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from common.errors import Mendable
from common.files import link_whole, sync
from runtime.bundle import Bundle
from runtime.signing import MANIFEST, SIGNATURE, Trust

LINKS = ("current", "previous")
STATE, BUNDLES, LOCK = ".state", "bundles", ".lock"
UNHASHED = ("reports", "engines")  # folders of a bundle that its manifest does not name


class PromotionError(Mendable):
    """A folder of bundles that cannot be changed; one sentence and the next step."""


def promote(bundle: Bundle, folder: Path) -> Bundle:
    """Copy `bundle` into `folder`, verify the copy as `bundle` was verified, and make it current; returns it. What was
    current is kept as the one to roll back to; where it is the same bundle, or damaged, the one before it is.

    Raises PromotionError, BundleError or SignatureError; `current` is then what it was.
    """
    with _held(folder):
        kept = _state(folder)
        _sweep(folder, kept)
        number = _next(folder)
        partial = folder / BUNDLES / f".{number}.partial"
        try:
            with _told(folder):
                _copy(bundle, partial)
            Bundle.load(partial, bundle.trust)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        with _told(folder):
            place = folder / BUNDLES / f"{number}-{bundle.digest[:12]}"
            partial.rename(place)
            sync(place.parent)
            good = (p for p in kept if _digest(p, bundle.trust) not in ("", bundle.digest))
            _set(folder, number, place, next(good, None))
        _sweep(folder, _state(folder))
        return dataclasses.replace(bundle, path=place)


def rollback(folder: Path, trust: Trust | None = None) -> Bundle:
    """Make the bundle before current, and keep the other as the one before; returns it. Raises PromotionError where
    there is none, and BundleError or SignatureError where it is damaged or not trusted; `current` is then what it
    was."""
    if not (folder / STATE).is_symlink():
        raise PromotionError(
            f"{folder} holds no bundles: `harmowam bundle promote BUNDLE --to {folder}` puts one there."
        )
    with _held(folder):
        kept = _state(folder)
        if len(kept) < 2:
            raise PromotionError(f"{folder} holds no bundle before the current one: promote another one.")
        found = Bundle.load(kept[1], trust)
        with _told(folder):
            _set(folder, _next(folder), kept[1], kept[0])
        _sweep(folder, _state(folder))
        return found


def before(folder: Path) -> Path | None:
    """The bundle that `rollback` would make current, or None."""
    kept = _state(folder)
    return kept[1] if len(kept) > 1 else None


def _digest(bundle: Path, trust: Trust | None) -> str:
    """Of a copy; "" where it is damaged or not trusted."""
    try:
        return Bundle.load(bundle, trust).digest
    except Mendable:
        return ""


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """Raises PromotionError where the disk is full or `folder` may not be written."""
    try:
        yield
    except OSError as e:
        raise PromotionError(
            f"{folder} cannot be written ({e.strerror}): make room there, run it with sudo, or name another folder "
            "with --to."
        ) from e


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The lock of `folder`, which is made where there is none. Raises PromotionError where another process has it, or
    where `folder` is used for something else."""
    if folder.exists() and not (folder.is_dir() and ((folder / LOCK).exists() or not any(folder.iterdir()))):
        raise PromotionError(f"{folder} is there and holds other things than bundles: name another folder with --to.")
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            raise PromotionError(f"another process changes {folder}: wait until it ends, then try again.") from e
        with _told(folder):
            (folder / BUNDLES).mkdir(exist_ok=True)
            for name in LINKS:
                if not (folder / name).is_symlink():
                    link_whole(folder / name, f"{STATE}/{name}")
        yield
    finally:
        os.close(fd)


def _state(folder: Path) -> list[Path]:
    """The current bundle and the one before, or fewer."""
    links = [folder / STATE / name for name in LINKS]
    return [folder / BUNDLES / Path(os.readlink(link)).name for link in links if link.is_symlink()]


def _set(folder: Path, number: int, current: Path, previous: Path | None) -> None:
    """Make these two the state, in one step. Raises OSError."""
    made = folder / f"{STATE}-{number}"
    made.mkdir()
    for name, bundle in zip(LINKS, (current, previous), strict=True):
        if bundle is not None:
            (made / name).symlink_to(f"../{BUNDLES}/{bundle.name}")
    sync(made)
    sync(folder)
    link_whole(folder / STATE, made.name)


def _next(folder: Path) -> int:
    """A number that no bundle and no state of `folder` has."""
    names = [p.name.partition("-")[0] for p in (folder / BUNDLES).iterdir()]
    names += [p.name.removeprefix(f"{STATE}-") for p in folder.glob(f"{STATE}-*")]
    return 1 + max((int(n) for n in names if n.isdecimal()), default=0)


def _sweep(folder: Path, kept: list[Path]) -> None:
    """Remove every copy but those `kept`, and every state but the one in use. What cannot be removed is left for the
    next time."""
    state = os.readlink(folder / STATE) if (folder / STATE).is_symlink() else ""
    names = {p.name for p in kept}
    for path in (folder / BUNDLES).iterdir():
        if path.name not in names:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f"{STATE}-*"):
        if path.name != state:
            shutil.rmtree(path, ignore_errors=True)


def _copy(bundle: Bundle, to: Path) -> None:
    """What the manifest names, its signature, reports and built engines, written through to the disk. Raises
    OSError."""
    names = [MANIFEST, *bundle.manifest.files]
    names += [SIGNATURE] if (bundle.path / SIGNATURE).is_file() else []
    for part in UNHASHED:
        found = [
            p.relative_to(bundle.path) for p in (bundle.path / part).rglob("*") if not p.is_symlink() and p.is_file()
        ]
        names += sorted(str(p) for p in found if not any(x.endswith(".partial") for x in p.parts))
    for name in names:
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path / name, to / name)
    for path in (to, *to.rglob("*")):
        sync(path)
