"""The log of a run as MCAP: every frame and every input of the engines, Prior ids, raw, limited and applied commands.

Enough to run the same steps again and get the same actions (`runtime.observe.replay`). Frames are kept as they came: a lossy picture gives
other actions. Topics and encodings are in `docs/runtime.md`. A run that writes a log never waits for the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mcap.exceptions import RecordLengthLimitExceeded
from mcap.records import Channel, Message, Metadata, Statistics
from mcap.stream_reader import StreamReader
from mcap.writer import MCAP0_MAGIC, CompressionType, Writer

from common.clock import prefer
from common.errors import Mendable
from firmware_bridge.motion.messages import Command, JointState
from runtime.cameras.sources import FRAME_HEAD, Frame
from runtime.contracts import A, Observation, Prior

VERSION = 2  # 2: joint angles are the maker's; 1: shoulder_pan and wrist_roll mirrored, jaw shut at 0
WAITING = 256  # records between the loops and the disk; frames are held by reference
RESERVE_BYTES = 256_000_000  # of the disk are left free: the rest of the system needs room to write, too
CHUNK_BYTES = 1_000_000  # compressed at a time; a log that is cut off loses one of these at most
_TICK = struct.Struct("<qqqqBB")  # step's time, observation, its capture time, Prior's number (-1: none), flags, joints
_PRIOR = struct.Struct("<qqqqqII")  # number, observation, its capture time, step's time, ready, chunk rows, joints
# Flags: the fast step's memory was cleared before this step; its command went to the arm; the step before it was dropped.
RESET, SENT, AFTER_GAP = 1, 2, 4
CUT, DAMAGED = "cut", "damaged"  # `kind` of what `read_log` gives last where a file does not come to its end


class LogError(Mendable):
    """A log that cannot be written or read; one sentence and the next step."""


@dataclass(frozen=True)
class TickRecord:
    """One fast step: what went in (frames by their numbers) and what came out. `command` is raw, before any limiter."""

    t_ns: int
    number: int
    t_capture_ns: int
    prior: int
    reset: bool
    sent: bool
    q_rad: np.ndarray  # float32[J], as the step saw it: rolled forward
    qd_rad_s: np.ndarray
    frames: dict[str, int]
    command: bytes  # `Command.pack()`, empty when the step gave none
    targets: np.ndarray  # float32[3,6]: reactive, predictive, sent
    after_gap: bool = False  # the step before it did not fit into the queue and is not in the log


@dataclass(frozen=True)
class PriorRecord:
    """One slow step: which observation went in, with which measured joints, and what came out (tokens and future by hash)."""

    number: int
    observation: int
    t_capture_ns: int
    t_ns: int
    t_ready_ns: int
    q_rad: np.ndarray
    qd_rad_s: np.ndarray
    chunk: np.ndarray  # float32[K,A]
    digest: bytes


@dataclass(frozen=True)
class FrameRecord:
    camera: str
    seq: int
    t_capture_ns: int
    image: np.ndarray  # uint8[H,W,3] RGB


def digest(prior: Prior) -> bytes:
    """SHA-256 of tokens and predicted future."""
    return hashlib.sha256(prior.tokens.tobytes() + prior.future.tobytes()).digest()


class LogWriter:
    """Writes `path` from a thread of its own. `fault` says why writing stopped, empty while all is well; control goes on."""

    def __init__(self, path: Path, meta: dict[str, Any], reserve_bytes: int = RESERVE_BYTES):
        self.path, self.fault, self.dropped, self.bytes = path, "", 0, 0
        self._partial = path.with_name(path.name + ".partial")
        self._reserve = reserve_bytes
        self._waiting: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._stop = self._gap = False
        self._frames: dict[str, int] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._partial, "wb")  # noqa: SIM115  (closed by the thread)
        except OSError as e:
            raise LogError(f"log {path} cannot be written ({e.strerror}): give another place with --log.") from e
        self._writer = Writer(self._file, chunk_size=1 << 40, compression=CompressionType.LZ4)
        self._writer.start(profile="", library=f"harmowam log {VERSION}")
        self._writer.add_metadata("run", {"json": json.dumps({"version": VERSION, **meta}, sort_keys=True)})
        self._channels: dict[str, int] = {}
        self._whole = 0  # bytes of the file that are whole records
        self._flush()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    # Called by the loops: microseconds, never blocking.

    def _later(self, work: Callable[[], None]) -> bool:
        """Whether there was room for it."""
        if self.fault:
            return False
        if len(self._waiting) >= WAITING:
            self.dropped += 1
            return False
        self._waiting.append(work)
        self._wake.set()
        return True

    def tick(
        self, t_ns: int, obs: Observation, frames: Mapping[str, Frame], prior: int, command: Command | None, targets: np.ndarray,
        *, reset: bool, sent: bool,
    ) -> None:  # fmt: skip
        """One fast step; `frames` are those of `obs`, whose pictures nobody may write to afterwards."""
        flags = RESET * reset + SENT * sent + AFTER_GAP * self._gap
        self._gap = not self._later(lambda: self._put_tick(t_ns, obs, frames, prior, command, targets, flags))

    def prior(self, prior: Prior, obs: Observation, t_ns: int) -> None:
        """One slow step. Call it before the Prior is used: the log keeps the order of cause and effect."""
        self._later(lambda: self._put_prior(prior, obs, t_ns))

    def state(self, state: JointState) -> None:
        """What the motor process did: limited goals, measured joints."""
        self._later(lambda: self._put("arm/state", state.t_ns, state.pack(), state.tick))

    def event(self, t_ns: int, kind: str, **fields: Any) -> None:
        """Health changes and the like, as JSON."""
        raw = json.dumps({"kind": kind, **fields}).encode()
        self._later(lambda: self._put("event", t_ns, raw, 0, "json"))

    # In the thread.

    def _put(self, topic: str, t_ns: int, data: bytes, sequence: int, encoding: str = "harmowam") -> None:
        channel = self._channels.get(topic)
        if channel is None:
            channel = self._channels[topic] = self._writer.register_channel(topic, encoding, 0)
        self._writer.add_message(channel, t_ns, data, t_ns, sequence & 0xFFFFFFFF)
        self.bytes += len(data)

    def _put_tick(
        self, t_ns: int, obs: Observation, frames: Mapping[str, Frame], prior: int, command: Command | None, targets: np.ndarray,
        flags: int,
    ) -> None:  # fmt: skip
        for name, f in frames.items():
            if self._frames.get(name) != f.seq:
                head = FRAME_HEAD.pack(f.t_capture_ns, f.image.shape[1], f.image.shape[0])
                self._put(f"camera/{name}", f.t_capture_ns, head + f.image.tobytes(), f.seq)
                self._frames[name] = f.seq
        raw = _TICK.pack(t_ns, obs.seq, obs.t_capture_ns, prior, flags, len(obs.q_rad))
        raw += np.concatenate([obs.q_rad, obs.qd_rad_s, targets.ravel()]).astype("<f4").tobytes()
        names = json.dumps({name: f.seq for name, f in frames.items()}).encode()
        raw += struct.pack("<I", len(names)) + names + (command.pack() if command is not None else b"")
        self._put("fast/step", t_ns, raw, obs.seq)

    def _put_prior(self, prior: Prior, obs: Observation, t_ns: int) -> None:
        n, k = len(obs.q_rad), len(prior.chunk)
        raw = _PRIOR.pack(prior.seq, obs.seq, prior.t_capture_ns, t_ns, prior.t_ready_ns, k, n)
        raw += np.concatenate([obs.q_rad, obs.qd_rad_s, prior.chunk.ravel()]).astype("<f4").tobytes() + digest(prior)
        self._put("slow/prior", prior.t_ready_ns, raw, prior.seq)

    def _flush(self) -> None:
        self._writer.flush()
        self._whole = self._file.tell()

    def _run(self) -> None:
        prefer(0)  # started by a loop with deadlines
        since = CHUNK_BYTES
        try:
            while True:
                self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    before = self.bytes
                    self._waiting.popleft()()
                    since += self.bytes - before
                    if since >= CHUNK_BYTES:
                        since = 0
                        self._flush()
                        free = shutil.disk_usage(self.path.parent).free
                        if free < self._reserve:
                            raise OSError(28, f"only {free / 1e6:.0f} MB are left on the disk")
                if (
                    self._stop and not self._channels
                ):  # nothing was driven: a log made before under this name is worth more
                    self._file.close()
                    os.unlink(self._partial)
                    return
                if self._stop:
                    self._writer.add_metadata("end", {"dropped": str(self.dropped)})
                    self._writer.finish()
                    self._flush_file()
                    os.replace(self._partial, self.path)
                    return
        except OSError as e:
            self.fault = f"recording stopped: {e.strerror}"
            self._waiting.clear()
            self._salvage()

    def _flush_file(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _salvage(self) -> None:
        """After a failure: cut the file behind its last whole chunk and give it its name."""
        try:
            self._file.close()
        except OSError:
            pass
        try:
            os.truncate(self._partial, self._whole)
            os.replace(self._partial, self.path)
        except OSError:  # it stays beside, and is read from there
            pass

    def close(self) -> None:
        """Write what waits, finish the file and give it its name. After a full disk, what fitted is kept. A log without a record
        is taken away. Closing twice is allowed.
        """
        self._stop = True
        self._wake.set()
        self._thread.join()
        self._waiting.clear()


def _tick_of(raw: bytes) -> TickRecord:
    t, number, captured, prior, flags, n = _TICK.unpack_from(raw)
    at = _TICK.size
    floats = np.frombuffer(raw, "<f4", 2 * n + 3 * A, at).copy()
    at += floats.nbytes
    (length,) = struct.unpack_from("<I", raw, at)
    frames = json.loads(raw[at + 4 : at + 4 + length])
    q, qd, targets = floats[:n], floats[n : 2 * n], floats[2 * n :].reshape(3, A)
    command = raw[at + 4 + length :]
    return TickRecord(
        t,
        number,
        captured,
        prior,
        bool(flags & RESET),
        bool(flags & SENT),
        q,
        qd,
        frames,
        command,
        targets,
        bool(flags & AFTER_GAP),
    )


def _prior_of(raw: bytes) -> PriorRecord:
    number, observation, captured, t, ready, k, n = _PRIOR.unpack_from(raw)
    floats = np.frombuffer(raw, "<f4", 2 * n + k * A, _PRIOR.size).copy()
    chunk = floats[2 * n :].reshape(k, A)
    return PriorRecord(number, observation, captured, t, ready, floats[:n], floats[n : 2 * n], chunk, raw[-32:])


def _decoded(
    record: Any, topics: dict[int, str]
) -> dict[str, Any] | TickRecord | PriorRecord | FrameRecord | JointState | None:
    """What one record of the file says; None for MCAP's own ones and for topics of others. `topics` is filled on the way."""
    if isinstance(record, Channel):
        topics[record.id] = record.topic
    elif isinstance(record, Metadata):
        meta: dict[str, Any] = record.metadata
        return dict(json.loads(meta["json"])) if record.name == "run" else {"kind": record.name, **meta}
    elif isinstance(record, Message):
        topic, raw = topics.get(record.channel_id), record.data
        if topic is None:
            raise ValueError("a message of an unknown topic")
        if topic == "fast/step":
            return _tick_of(raw)
        if topic == "slow/prior":
            return _prior_of(raw)
        if topic == "arm/state":
            return JointState.unpack(raw)
        if topic == "event":
            return {"t_ns": record.log_time, **json.loads(raw)}
        if topic.startswith("camera/"):
            t, w, h = FRAME_HEAD.unpack_from(raw)
            image = np.frombuffer(raw, np.uint8, w * h * 3, FRAME_HEAD.size).reshape(h, w, 3)
            return FrameRecord(topic.removeprefix("camera/"), record.sequence, t, image)
    return None


def read_meta(path: Path) -> dict[str, Any]:
    """What the run was: task, bundle, calibrations, rates. Raises LogError."""
    for record in read_log(path):
        if isinstance(record, dict) and "version" in record:
            if record["version"] != VERSION:
                older = isinstance(record["version"], int) and record["version"] < VERSION
                raise LogError(
                    f"{path} is a log of version {record['version']}, this program reads {VERSION}: "
                    + ("replay it with the release that recorded it." if older else "upgrade harmowam.")
                )
            return record
        if isinstance(record, dict) and record.get("kind") == DAMAGED:
            raise LogError(f"{path} is damaged at its beginning ({record['why']}): give another copy of it.")
        break
    raise LogError(f"{path} is not a log of harmowam: give a file made with --log.")


def read_log(path: Path) -> Iterator[dict[str, Any] | TickRecord | PriorRecord | FrameRecord | JointState]:
    """Records in the order they were written. JSON comes as dicts (`kind`).

    A file that was not finished ends where it was cut, and one that is damaged where the damage begins; the last record is then a
    dict whose `kind` is CUT or DAMAGED and whose `why` says what was found. Raises LogError for a file that is absent or no log.
    """
    path = Path(path)
    if not path.is_file() and path.with_name(path.name + ".partial").is_file():
        path = path.with_name(path.name + ".partial")
    try:
        stream = open(path, "rb")  # noqa: SIM115
    except OSError as e:
        raise LogError(f"log {path} cannot be read ({e.strerror}): give a file made with --log.") from e
    topics: dict[int, str] = {}
    with stream:
        if stream.read(len(MCAP0_MAGIC)) != MCAP0_MAGIC:
            raise LogError(f"{path} is not a log of harmowam: give a file made with --log.")
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - len(MCAP0_MAGIC), len(MCAP0_MAGIC)))
        finished = stream.read() == MCAP0_MAGIC
        stream.seek(0)
        # A length that is damaged must not ask for more memory than the file has bytes.
        records = iter(StreamReader(stream, validate_crcs=True, record_size_limit=size).records)
        messages, counted = 0, -1  # read, and what the file says that it holds
        while True:
            try:
                record = next(records)
                messages += isinstance(record, Message)
                counted = record.message_count if isinstance(record, Statistics) else counted
                made = _decoded(record, topics)
            except StopIteration:
                # Whole records that were wiped out leave no trace but their number.
                if messages != counted:
                    yield {"kind": DAMAGED, "why": f"{messages} messages were found where {counted} were written"}
                return
            except Exception as e:  # the reader raises whatever it meets
                beyond = stream.tell() >= size or isinstance(e, RecordLengthLimitExceeded)
                if beyond and not finished:
                    yield {"kind": CUT, "why": "it was not finished"}
                else:
                    yield {"kind": DAMAGED, "why": str(e) or type(e).__name__}
                return
            if made is not None:
                yield made
