"""Where calibrations live: immutable files named by their content, and one pointer that is switched atomically.

    STORE/front/3f9a...json   a record: schema, kind, camera identity, result, uncertainty, raw corners, parents
    STORE/front/current       the hash in use
    STORE/front/log.jsonl     every move of the pointer, and why

Nothing is ever overwritten: a new result is a new file, `rollback` moves the pointer, and a full disk leaves both as
they were.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from msgspec import Meta

from calibration.camera import CalibrationError, Camera, Pixels
from common.errors import unreadable
from common.files import barred, write_whole
from common.schema import Malformed, Name, Shape, Text, parse_json, read_bounded, shaped

SCHEMA = 1
MOST_BYTES = 64 * 1024 * 1024  # of a record: it holds the raw corners of every view
MOST_CAMERA_BYTES = 1024 * 1024  # of a plain camera file


class Identity(Shape, frozen=True):
    """What a record was made with: a camera (`serial` and `focus` where the driver tells them), or servos (`ids`)."""

    serial: Text | None = None
    focus: Annotated[float, Meta(ge=-1e6, le=1e6)] | None = None
    width: Pixels | None = None
    height: Pixels | None = None
    mount: Literal["base", "arm"] | None = None
    ids: list[Annotated[int, Meta(ge=0, le=252)]] | None = None


class Record(Shape, frozen=True):
    """A file of the store. What `result` holds depends on `kind`: `CameraFile`, `JointsFile` or `ReferenceFile`."""

    schema: Annotated[int, Meta(ge=1, le=SCHEMA)]
    kind: Literal["camera", "joints", "reference"]
    name: Name
    created: Text
    identity: Identity
    parents: Annotated[list[Text], Meta(max_length=16)]
    result: dict[Text, Any]
    uncertainty: dict[Text, Any]
    evidence: dict[Text, Any]
    hash: Text = ""


def content_hash(record: dict[str, Any]) -> str:
    """SHA-256 of the record without its own "hash", as canonical JSON (sorted keys, no blanks, no NaN)."""
    plain = {k: v for k, v in record.items() if k != "hash"}
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def new_record(
    kind: str,
    name: str,
    result: dict[str, Any],
    *,
    identity: dict[str, Any],
    parents: list[str],
    uncertainty: dict[str, Any],
    evidence: dict[str, Any],
) -> dict[str, Any]:
    """A record ready for `Store.put`; `evidence` holds what the result was computed from (raw corners, joint
    angles)."""
    created = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {
        "schema": SCHEMA,
        "kind": kind,
        "name": name,
        "created": created,
        "identity": identity,
        "parents": parents,
        "result": result,
        "uncertainty": uncertainty,
        "evidence": evidence,
    }


def write_result(path: Path, data: bytes) -> None:
    """Write a report or another file for people, and its folder where there is none. Raises CalibrationError when it
    cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as e:
        raise CalibrationError(
            f"{path} cannot be written ({e.strerror}): make room or name another place; the stored calibration is "
            "untouched."
        ) from e


class Store:
    """One folder of calibrations: a sub-folder per camera name, "NAME.reference" for drift references, and "joints"."""

    def __init__(self, root: Path):
        self.root = Path(root)

    def _folder(self, name: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            raise CalibrationError(f"'{name}' is no name for a calibration: use letters, digits, '_', '-' and '.'.")
        return self.root / name

    def put(self, record: dict[str, Any]) -> str:
        """Write a record; returns its hash. The pointer stays where it is. Raises CalibrationError when it cannot be
        written."""
        try:
            shaped(record, Record)
            digest = content_hash(record)
        except (Malformed, ValueError) as e:  # ValueError: a NaN in what the result was computed from
            raise CalibrationError(
                f"this calibration cannot be stored ({e}): the stored one is untouched; calibrate again."
            ) from e
        folder = self._folder(record["name"])
        text = json.dumps({**record, "hash": digest}, indent=1, sort_keys=True, allow_nan=False) + "\n"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / f"{digest}.json", text.encode(), 0o444)
        except OSError as e:
            raise CalibrationError(
                f"calibration could not be written to {folder} ({e.strerror}): the stored one is untouched; make room "
                "and repeat."
            ) from e
        return digest

    def current_hash(self, name: str) -> str | None:
        """The hash in use, None where nothing is; raises CalibrationError for a pointer that is damaged."""
        path = self._folder(name) / "current"
        try:
            text = read_bounded(path, 1024).decode("ascii", "replace").strip()
        except FileNotFoundError:
            return None
        except Malformed:
            text = ""
        except OSError as e:
            raise CalibrationError(
                f"the pointer {path} cannot be read ({e.strerror}): run `harmowam calibrate rollback {name}`."
            ) from e
        if not re.fullmatch("[0-9a-f]{64}", text):
            raise CalibrationError(
                f"the pointer {path} is damaged and names no calibration: run `harmowam calibrate rollback {name}`."
            )
        return text

    def known_hash(self, name: str) -> str | None:
        """The hash in use; None where there is none or the pointer is damaged. For code that mends it or only looks.
        Raises CalibrationError where the pointer may not be read."""
        self._folder(name)  # refuses what is no name
        try:
            return self.current_hash(name)
        except CalibrationError as e:
            if unreadable(e):
                raise
            return None

    def _records(self, name: str) -> list[Path]:
        """The records' files. Raises CalibrationError where the folder may not be read."""
        folder = self._folder(name)
        if said := barred(folder):
            raise CalibrationError(said)
        return list(folder.glob("*.json"))

    def resolve(self, name: str, prefix: str) -> str:
        """The full hash for an unambiguous beginning of one."""
        found = [p.stem for p in self._records(name) if p.stem.startswith(prefix)]
        if len(found) != 1:
            what = "does not exist" if not found else "fits several"
            raise CalibrationError(
                f"calibration {prefix} of '{name}' {what}: see `harmowam calibrate history {name}` for the hashes."
            )
        return found[0]

    def get(self, name: str, digest: str | None = None, kind: str | None = None) -> dict[str, Any]:
        """The record `digest` (default: the current one); raises CalibrationError when absent, damaged, newer or of
        another kind."""
        digest = digest or self.current_hash(name)
        if digest is None:
            verb = {"reference": "check --learn", "joints": "joints"}.get(kind or "", "intrinsics")
            raise CalibrationError(f"'{name}' has no calibration in {self.root}: run `harmowam calibrate {verb}`.")
        path = self._folder(name) / f"{digest}.json"
        mend = f"run `harmowam calibrate rollback {name}` or calibrate again."
        try:
            record = parse_json(read_bounded(path, MOST_BYTES))
        except (OSError, Malformed) as e:
            raise CalibrationError(f"calibration {path} is missing or damaged ({e}): {mend}") from e
        if not isinstance(record, dict) or not isinstance(record.get("schema"), int):
            raise CalibrationError(f"{path} is no calibration record: {mend}")
        if record["schema"] > SCHEMA:
            raise CalibrationError(
                f"{path} has schema {record['schema']}, this version reads {SCHEMA}: upgrade harmowam, or {mend}"
            )
        try:
            intact = content_hash(record) == digest == record.get("hash")
        except ValueError:
            intact = False
        if not intact:
            raise CalibrationError(f"calibration {path} was changed or damaged (its hash does not fit): {mend}")
        try:
            shaped(record, Record)
        except Malformed as e:
            raise CalibrationError(f"{path} is no calibration record ({e}): {mend}") from e
        if record["name"] != name:
            raise CalibrationError(f"{path} is a calibration of '{record['name']}', not of '{name}': {mend}")
        if kind is not None and record["kind"] != kind:
            raise CalibrationError(f"{path} is a {record['kind']} calibration, not a {kind} one: name another.")
        return record

    def set_current(self, name: str, digest: str, why: str) -> None:
        """Switch the pointer to an intact record. The log comes first, so that every switch has its reason there."""
        self.get(name, digest)
        folder = self._folder(name)
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        line = json.dumps({"at": now, "to": digest, "from": self.known_hash(name), "why": why})
        try:
            with open(folder / "log.jsonl", "ab+") as log:
                if log.tell() > 0:
                    log.seek(-1, os.SEEK_END)
                    # A power cut may have left half a line: a new one must not be appended to it.
                    line = line if log.read(1) == b"\n" else "\n" + line
                log.write((line + "\n").encode())
                log.flush()
                os.fsync(log.fileno())
            write_whole(folder / "current", (digest + "\n").encode())
        except OSError as e:
            raise CalibrationError(
                f"the pointer in {folder} could not be switched ({e.strerror}): the stored calibration is untouched."
            ) from e

    def moves(self, name: str) -> list[dict[str, Any]]:
        """Every move of the pointer, oldest first, without damaged lines (a power cut leaves half a line). Raises
        CalibrationError where they may not be read."""
        path = self._folder(name) / "log.jsonl"
        try:
            lines = read_bounded(path, MOST_BYTES).split(b"\n")
        except (OSError, Malformed) as e:
            if said := unreadable(e):
                raise CalibrationError(said) from e
            return []
        out = []
        for line in lines:
            try:
                move = parse_json(line)
            except Malformed:
                continue
            if not isinstance(move, dict) or not {"to", "from", "why"} <= move.keys():
                continue
            if isinstance(move["to"], str) and isinstance(move["from"], (str, type(None))):
                out.append(move)
        return out

    def names(self) -> list[str]:
        if said := barred(self.root):
            raise CalibrationError(said)
        return sorted(p.name for p in self.root.iterdir() if p.is_dir()) if self.root.is_dir() else []

    def history(self, name: str) -> list[dict[str, Any]]:
        """All records of `name`, oldest first: hash, created, kind, current, what is wrong with it ("" if nothing),
        summary."""
        current = self.known_hash(name)
        rows = []
        for path in self._records(name):
            row: dict[str, Any] = {
                "hash": path.stem,
                "current": path.stem == current,
                "created": "",
                "kind": "",
                "summary": "",
            }
            try:
                record = self.get(name, path.stem)
                quality = record["uncertainty"]
                row.update(created=record["created"], kind=record["kind"], parents=record["parents"], error="")
                row["summary"] = ", ".join(f"{k} {v:.3g}" for k, v in quality.items() if isinstance(v, (int, float)))
            except CalibrationError as e:
                row["error"] = str(e)
            rows.append(row)
        return sorted(rows, key=lambda r: (r["created"], r["hash"]))

    def rollback(self, name: str, prefix: str | None = None) -> str:
        """Point at an earlier record: the named one, or the newest intact one that was in use before the current one.

        Where the pointer is lost or damaged, the newest intact one that was in use at all.
        """
        current = self.known_hash(name)
        if prefix is not None:
            digest = self.resolve(name, prefix)
            self.set_current(name, digest, "rollback")
            return digest
        # Follow "from" back along the moves that led here, so that a record that was rolled back is not chosen again.
        moves = self.moves(name)
        at, seen = current, {current}
        lost = current not in [m["to"] for m in moves]
        while True:
            earlier = [m["from"] for m in moves if m["to"] == at and m["why"] != "rollback"]
            if lost:
                earlier, lost = [m["to"] for m in moves], False
            at = earlier[-1] if earlier else None
            if at is None or at in seen:
                raise CalibrationError(f"'{name}' has no earlier intact calibration to go back to: calibrate it again.")
            seen.add(at)
            try:
                self.set_current(name, at, "rollback")
                return at
            except CalibrationError as e:
                if unreadable(e):  # it may be intact: an older one must not take its place unasked
                    raise


def refuse_other_camera(record: dict[str, Any], identity: dict[str, Any]) -> None:
    """Raises CalibrationError when the record was made with another camera, resolution or focus; keys absent on one
    side pass."""
    for key, meaning in (("serial", "camera"), ("width", "width"), ("height", "height"), ("focus", "focus")):
        was, now = record["identity"].get(key), identity.get(key)
        if was is not None and now is not None and was != now:
            raise CalibrationError(
                f"calibration of '{record['name']}' is for {meaning} {was}, this camera has {now}: "
                "set the camera back or calibrate it again."
            )


def load_camera(path: Path, identity: dict[str, Any] | None = None) -> Camera:
    """Read one camera: a plain file, or a camera's folder in a calibration store, whose current record counts.

    Raises CalibrationError when it is absent or damaged, when a camera fixed to the base has no pose yet, or when the
    record was made with another camera than `identity` ("serial", "width", "height", "focus") says.
    """
    try:
        if not Path(path).is_dir():
            return Camera.from_json(parse_json(read_bounded(path, MOST_CAMERA_BYTES)), str(path))
    except (OSError, ValueError) as e:  # ValueError: a path that can be none
        why = e.strerror if isinstance(e, OSError) else e
        raise CalibrationError(
            f"camera calibration {path} cannot be read ({why}): calibrate the camera, or check the path in the robot "
            "file."
        ) from e
    except Malformed as e:
        raise CalibrationError(
            f"camera calibration {path} is damaged ({e}): restore it or calibrate the camera again."
        ) from e
    record = Store(Path(path).parent).get(Path(path).name, kind="camera")
    refuse_other_camera(record, identity or {})
    camera = Camera.from_json(record["result"], str(path))
    if record["identity"].get("mount") == "base" and camera.T_base_from_cam is None:
        raise CalibrationError(
            f"camera '{camera.name}' has intrinsics but no pose yet: run `harmowam calibrate hand-eye --camera "
            f"{camera.name}`."
        )
    return camera
