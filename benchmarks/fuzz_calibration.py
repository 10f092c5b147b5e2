"""Damaged calibration stores: `python -m benchmarks.fuzz_calibration [--count N] [--store FOLDER]`.

Every damage is one of: a file of the store (record, pointer, log) with a bit turned over, bytes overwritten, cut out or
doubled, or cut short; a record of another name or kind in the place of this one, its own hash intact; a file that is
gone, a folder, a pipe, a device or a link to itself; a record with a value replaced and hashes that fit, which no hash
can find. A store may be refused in a sentence, or read as what it was. Counted: what was read with another meaning,
what ended in any other exception, what took longer than 5 s. A damaged log may lose a move, so what `rollback` chooses
is not compared; a record that is made anew with hashes that fit is by definition what it says, and is counted apart.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fuzz_bundle import SLOW_S, Found, damaged
from benchmarks.fuzz_log import odd_json
from calibration.camera import Camera
from calibration.check import Reference
from calibration.joints import Joint, JointCalibration
from calibration.store import Store, content_hash, load_camera, new_record
from common.errors import Mendable


class TooSlow(BaseException):
    """Raised by the alarm; no handler of `Exception` swallows it."""


@dataclass
class Judged(Found):
    """`anew`: made with hashes that fit, and read."""

    anew: int = 0


def judge(found: Judged, what: str, read: Callable[[], Any], whole: Any) -> None:
    """Count what becomes of `read`; `whole`: what it gives for the undamaged input, None where nothing can be
    compared."""

    def ring(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SLOW_S)
    try:
        got = read()
        if whole is None:
            found.anew += 1
        elif got == whole:
            found.same += 1
        else:
            found.accepted.append(what)
    except Mendable as e:
        found.refused += 1
        if "\n" in str(e):
            found.failed.append(f"{what}: more than one line: {e}")
    except TooSlow:
        found.slow.append(what)
    except Exception as e:
        found.failed.append(f"{what}: {type(e).__name__}: {str(e)[:80]}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def meaning(root: Path, name: str) -> Any:
    """What the runtime takes from the current record of `name`, with everything that looks at its folder done as
    well."""
    store = Store(root)
    store.names()
    store.history(name)
    store.moves(name)
    store.known_hash(name)
    record = store.get(name)
    if name == "joints":
        return JointCalibration.from_json(store.get(name, kind="joints")["result"]).to_json()
    if name.endswith(".reference"):
        return Reference.from_json(store.get(name, kind="reference")["result"]).to_json()
    return load_camera(root / name).to_json(), record["identity"], record["uncertainty"]


def replace(path: Path, rng: random.Random) -> str:
    """Put something that is no file at `path`."""
    path.unlink()
    kind = rng.choice(["gone", "folder", "pipe", "device", "loop", "empty"])
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind in ("device", "loop"):
        path.symlink_to("/dev/zero" if kind == "device" else path)
    elif kind == "empty":
        path.touch()
    return f"{path.name}: {kind}"


def put_back(folder: Path, files: dict[Path, bytes]) -> None:
    shutil.rmtree(folder)
    for path, raw in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)


def forged(root: Path, name: str, rng: random.Random) -> str:
    """The current record of `name` with a value replaced, and every hash made to fit."""
    folder = root / name
    path = folder / f"{(folder / 'current').read_text().strip()}.json"
    record = json.loads(odd_json(path.read_bytes(), rng))
    if isinstance(record, dict):
        record["hash"] = digest = content_hash(record)
        (folder / f"{digest}.json").write_text(json.dumps(record))
        (folder / "current").write_text(digest + "\n")
    return f"{name}: forged"


def exchanged(root: Path, name: str, names: list[str], rng: random.Random) -> str:
    """Another name's current record, whole, as the current one of `name`."""
    other = rng.choice([n for n in names if n != name])
    digest = (root / other / "current").read_text()
    shutil.copy(root / other / f"{digest.strip()}.json", root / name)
    (root / name / "current").write_text(digest)
    return f"{other}'s record as {name}'s"


def fuzz(root: Path, count: int, seed: int) -> Judged:
    """Read `count` damaged forms of the store `root`, which is whole again afterwards."""
    rng, found = random.Random(seed), Judged()
    names = Store(root).names()
    whole = {name: meaning(root, name) for name in names}
    files = {name: {p: p.read_bytes() for p in sorted((root / name).iterdir())} for name in names}
    for _ in range(count):
        name, kind = rng.choice(names), rng.random()
        path = rng.choice(list(files[name]))
        expected = whole[name]
        if kind < 0.6:
            raw, what = damaged(files[name][path], rng)
            path.unlink()  # records are read-only
            path.write_bytes(raw)
            what = f"{path.name}: {what}"
        elif kind < 0.75:
            what = replace(path, rng)
        elif kind < 0.8:
            what = exchanged(root, name, names, rng)
        else:
            what, expected = forged(root, name, rng), None
        judge(found, f"{name}/{what}", functools.partial(meaning, root, name), expected)
        put_back(root / name, files[name])
    return found


def made(root: Path) -> Path:
    """A store with two cameras, a drift reference and joints, each calibrated twice."""
    rng, store = np.random.default_rng(0), Store(root)
    for k in range(2):
        kept: dict[str, tuple[str, dict[str, Any]]] = {}
        for name in ("front", "wrist"):
            K = np.array([[300.0 + k, 0, 160], [0, 300, 120], [0, 0, 1]])
            lens = rng.normal(0, 0.05, 5)
            kept[name] = ("camera", Camera(name, 320, 240, K, lens, np.eye(4) if name == "front" else None).to_json())
        corners = rng.uniform(0, 200, (12, 2))
        kept["front.reference"] = ("reference", Reference("6x4", 320, 240, np.arange(12), corners, 0.1 + k).to_json())
        joints = [Joint(f"joint_{i}", i, 2048 + k, 1, 900, 3100, 17) for i in range(1, 7)]
        kept["joints"] = ("joints", JointCalibration(tuple(joints)).to_json())
        for name, (kind, result) in kept.items():
            identity = (
                {"ids": [1, 2, 3, 4, 5, 6]} if kind == "joints" else {"serial": "A7", "width": 320, "height": 240}
            )
            evidence = {"corners": rng.uniform(0, 200, (20, 2)).tolist()}
            record = new_record(
                kind, name, result, identity=identity, parents=[], uncertainty={"px": 0.21}, evidence=evidence
            )
            store.set_current(name, store.put(record), "made")
    return root


def report(found: Judged, count: int, what: str) -> None:
    print(
        f"{count} damaged {what}: {found.refused} refused, {found.same} unchanged in meaning, "
        f"{found.anew} that nothing can tell from ones written so"
    )
    for name in ("accepted", "failed", "slow"):
        print(f"{name}: {len(getattr(found, name))}", *getattr(found, name)[:20], sep="\n  ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, help="a store to damage copies of (default: one made for it)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        if args.store is None:
            made(root)
        else:
            shutil.copytree(args.store, root)
        found = fuzz(root, args.count, args.seed)
    report(found, args.count, "calibration stores")


if __name__ == "__main__":
    main()
