"""Reads what `runtime.observe.log` wrote: all of it, or up to where it was cut off or damaged."""

from __future__ import annotations

import dataclasses
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated, Any

import lz4.frame
import numpy as np
from mcap.exceptions import RecordLengthLimitExceeded
from mcap.records import Channel, Chunk, Message, Metadata, Statistics
from mcap.stream_reader import StreamReader, breakup_chunk
from mcap.writer import MCAP0_MAGIC
from msgspec import Meta, field

from common.schema import Malformed, Shape, Text, shaped
from firmware_bridge.motion.messages import MAX_JOINTS, JointState
from runtime.observe.records import (
    CAMERA,
    CUT,
    DAMAGED,
    ENCODING,
    FUTURE,
    HEALTH,
    PRIOR,
    READABLE,
    STATE,
    STEP,
    FrameRecord,
    FutureRecord,
    LogError,
    PriorRecord,
    TickRecord,
    future_of,
    prior_of,
    tick_of,
)
from runtime.observe.schemas import image_of

MOST_CHUNK = 256 * 2**20  # bytes; a writer ends a chunk at 1 MB, which lz4 expands to 255 MB at most
FRAME_HEAD = struct.Struct("<qII")  # of a picture in a log of version 2: capture time, width, height

Record = dict[str, Any] | TickRecord | PriorRecord | FutureRecord | FrameRecord | JointState


def _frame_of(channel: Channel, message: Message) -> FrameRecord:
    raw: bytes = message.data
    if channel.message_encoding == ENCODING:  # of a log of version 2
        t_ns, width, height = FRAME_HEAD.unpack_from(raw)
        image = np.frombuffer(raw, np.uint8, width * height * 3, FRAME_HEAD.size).reshape(height, width, 3)
    else:
        t_ns, image = image_of(raw)
    return FrameRecord(channel.topic.removeprefix(CAMERA), message.sequence, t_ns, image)


def _message_of(channel: Channel, message: Message) -> Record | None:
    topic, raw = channel.topic, message.data
    if topic.startswith(CAMERA):
        return _frame_of(channel, message)
    if topic == STEP:
        return tick_of(raw)
    if topic == PRIOR:
        return prior_of(raw)
    if topic == FUTURE:
        return future_of(raw)
    if topic == STATE:
        return JointState.unpack(raw)
    if topic in (HEALTH, "event"):  # the latter in version 2
        return {"kind": HEALTH, "t_ns": message.log_time, **json.loads(raw)}
    return None


def _decoded(record: Any, channels: dict[int, Channel]) -> Record | None:
    """What one record of the file says; None for MCAP's own records and for unknown topics. Adds to `channels` what the
    record says of a topic."""
    if isinstance(record, Channel):
        channels[record.id] = record
    elif isinstance(record, Metadata):
        meta: dict[str, Any] = record.metadata
        return dict(json.loads(meta["json"])) if record.name == "run" else {"kind": record.name, **meta}
    elif isinstance(record, Message):
        if record.channel_id not in channels:
            raise ValueError("a message of an unknown topic")
        return _message_of(channels[record.channel_id], record)
    return None


class RunMeta(Shape, frozen=True):
    """What a log must say of its run to be replayed."""

    task: Text
    policy: Text
    bundle: Text
    bundle_sha256: Text
    calibrations: dict[Text, dict[str, Any]]
    joints: Annotated[list[Text], Meta(max_length=MAX_JOINTS)] = field(default_factory=list)  # none in version 2
    engine: Text = "cpu"
    ends: tuple[list[float], list[float]] | None = None
    then: list[Text] = field(default_factory=list)  # tasks that follow, each when the policy says done


class _Fit:
    """What must fit what in a log: every record the joints of the run, every picture the size of its camera."""

    def __init__(self) -> None:
        self.joints: int | None = None
        self.sizes: dict[str, tuple[int, int]] = {}

    def check(self, record: Record) -> None:
        """Raises ValueError."""
        if isinstance(record, dict):
            joints, cameras = record.get("joints"), record.get("calibrations")
            if "version" in record and isinstance(joints, list):
                self.joints = len(joints)
            if "version" in record and isinstance(cameras, dict):
                known = {name: c for name, c in cameras.items() if isinstance(c, dict)}
                self.sizes = {name: (c.get("height", 0), c.get("width", 0)) for name, c in known.items()}
        elif isinstance(record, FrameRecord):
            if record.camera in self.sizes and record.image.shape[:2] != self.sizes[record.camera]:
                raise ValueError(f"a picture of another size than camera '{record.camera}' gives")
        elif not isinstance(record, FutureRecord) and self.joints not in (None, len(record.q_rad)):
            raise ValueError(f"{len(record.q_rad)} joints where the run had {self.joints}")


def read_run(path: Path) -> dict[str, Any]:
    """What the run was, as `replay` needs it. Raises LogError."""
    meta = read_meta(path)
    try:
        shaped({k: v for k, v in meta.items() if k in RunMeta.__struct_fields__}, RunMeta)
    except Malformed as e:
        raise LogError(f"{path} is damaged at its beginning ({e}): give another copy of it.") from e
    return meta


def _records(stream: IO[bytes], size: int) -> Iterator[Any]:
    """MCAP's records, those of chunks included. Memory is bounded: by the file's size for a record whose length was
    damaged, by MOST_CHUNK for a chunk, whatever it says of itself (lz4 expands 255 times)."""
    for record in StreamReader(stream, emit_chunks=True, validate_crcs=True, record_size_limit=size).records:
        if not isinstance(record, Chunk):
            yield record
            continue
        data = record.data
        if record.uncompressed_size > MOST_CHUNK:
            raise ValueError(f"a part of it would take {record.uncompressed_size / 1e6:.0f} MB of memory")
        if record.compression == "lz4":
            data = lz4.frame.LZ4FrameDecompressor().decompress(data, max_length=record.uncompressed_size + 1)
        elif record.compression:
            raise ValueError(f"it is compressed by {record.compression[:20]!r}, which harmowam does not write")
        if len(data) != record.uncompressed_size:
            raise ValueError("a part of it does not have the length that it says")
        yield from breakup_chunk(dataclasses.replace(record, compression="", data=data), validate_crc=True)


def read_meta(path: Path) -> dict[str, Any]:
    """What the run was: task, bundle, calibrations, rates. Raises LogError."""
    for record in read_log(path):
        if isinstance(record, dict) and "version" in record:
            if record["version"] not in READABLE:
                older = isinstance(record["version"], int) and record["version"] < READABLE[0]
                raise LogError(
                    f"{path} is a log of version {record['version']}, this program reads {READABLE[0]} to "
                    f"{READABLE[-1]}: "
                    + ("replay it with the release that recorded it." if older else "upgrade harmowam.")
                )
            return record
        if isinstance(record, dict) and record.get("kind") == DAMAGED:
            raise LogError(f"{path} is damaged at its beginning ({record['why']}): give another copy of it.")
        break
    raise LogError(f"{path} is not a log of harmowam: give a file made with --log or --record.")


def read_log(path: Path) -> Iterator[Record]:
    """Records in the order they were written. JSON comes as dicts (`kind`).

    A file that was not finished ends where it was cut, and one that is damaged where the damage begins; the last record
    is then a dict whose `kind` is CUT or DAMAGED and whose `why` says what was found. Raises LogError for a file that
    is absent or no log.
    """
    path = Path(path)
    if not path.is_file() and path.with_name(path.name + ".partial").is_file():
        path = path.with_name(path.name + ".partial")
    try:
        stream = open(path, "rb")  # noqa: SIM115
    except OSError as e:
        raise LogError(f"log {path} cannot be read ({e.strerror}): give a file made with --log or --record.") from e
    channels: dict[int, Channel] = {}
    with stream:
        if stream.read(len(MCAP0_MAGIC)) != MCAP0_MAGIC:
            raise LogError(f"{path} is not a log of harmowam: give a file made with --log or --record.")
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - len(MCAP0_MAGIC), len(MCAP0_MAGIC)))
        finished = stream.read() == MCAP0_MAGIC
        stream.seek(0)
        records = _records(stream, size)
        fit = _Fit()
        messages, counted = 0, -1  # messages read, and how many the file says it holds
        while True:
            try:
                record = next(records)
                messages += isinstance(record, Message)
                counted = record.message_count if isinstance(record, Statistics) else counted
                made = _decoded(record, channels)
                if made is not None:
                    fit.check(made)
            except StopIteration:
                # Where whole records were wiped out, only the number of messages shows it.
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
