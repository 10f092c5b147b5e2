"""The part of a log for other programs: Foxglove's schemas for pictures, places and messages, and JSON numbers for any
plotter.

Names and fields are those of docs.foxglove.dev ("message schemas"). Pictures are protobuf, as JSON would carry them in
base64; the few bytes round the pixels are written here by hand, so that a robot needs no protobuf library.
"""

from __future__ import annotations

import enum
import json
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np

from firmware_bridge.motion.messages import Command, JointState
from runtime.contracts import ACTION_NAMES

BASE, TOOL = "base", "tool"  # frames of reference
PROTOBUF, JSON = "protobuf", "json"  # encodings of messages; a JSON message's schema is encoded "jsonschema"
RAW_IMAGE, FRAME_TRANSFORM, LOG = "foxglove.RawImage", "foxglove.FrameTransform", "foxglove.Log"
JOINTS, COMMAND, HEALTH = "harmowam.Joints", "harmowam.Command", "harmowam.Health"
_VARINT, _BYTES, _FIXED32 = 0, 2, 5  # protobuf's kinds of fields


class Level(enum.IntEnum):
    """Of a `foxglove.Log` message."""

    INFO = 2
    WARNING = 3
    ERROR = 4
    FATAL = 5


def camera_frame(name: str) -> str:
    """Frame of reference of a camera: x right, y down, z into the picture, as in `calibration.camera`."""
    return f"{name}_camera"


# Protobuf


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


def _int(number: int, value: int) -> bytes:
    return _varint(number << 3 | _VARINT) + _varint(value)


def _fixed(number: int, value: int) -> bytes:
    return _varint(number << 3 | _FIXED32) + struct.pack("<I", value)


def _text(number: int, value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | _BYTES) + _varint(len(raw)) + raw


def _described(
    file: str, package: str, message: str, fields: Iterable[tuple[str, int, int, str]], needs: str = ""
) -> bytes:
    """A `google.protobuf.FileDescriptorProto` of one message; fields are (name, number, type, type's name)."""
    described = _text(1, message)
    for name, number, kind, of in fields:
        # 4: label, 1: optional
        described += _text(
            2, _text(1, name) + _int(3, number) + _int(4, 1) + _int(5, kind) + (_text(6, of) if of else b"")
        )
    return (
        _text(1, file)
        + _text(2, package)
        + (_text(3, needs) if needs else b"")
        + _text(4, described)
        + _text(12, "proto3")
    )


def raw_image_schema() -> bytes:
    """`google.protobuf.FileDescriptorSet` of `foxglove.RawImage`, as MCAP wants a protobuf schema."""
    int64, int32, fixed32, string, message, data = 3, 5, 7, 9, 11, 12
    stamp = "google/protobuf/timestamp.proto"
    time = _described(stamp, "google.protobuf", "Timestamp", [("seconds", 1, int64, ""), ("nanos", 2, int32, "")])
    fields = [
        ("timestamp", 1, message, ".google.protobuf.Timestamp"),
        ("width", 2, fixed32, ""),
        ("height", 3, fixed32, ""),
        ("encoding", 4, string, ""),
        ("step", 5, fixed32, ""),
        ("data", 6, data, ""),
        ("frame_id", 7, string, ""),
    ]
    return _text(1, time) + _text(1, _described("foxglove/RawImage.proto", "foxglove", "RawImage", fields, needs=stamp))


def raw_image(frame_id: str, t_ns: int, image: np.ndarray) -> bytes:
    """A `foxglove.RawImage` of uint8[H,W,3] RGB, taken at `t_ns`; the pixels come last and are copied once."""
    height, width = image.shape[:2]
    head = _text(1, _int(1, t_ns // 10**9) + _int(2, t_ns % 10**9)) + _fixed(2, width) + _fixed(3, height)
    head += _text(4, "rgb8") + _fixed(5, 3 * width) + _text(7, frame_id)
    head += _varint(6 << 3 | _BYTES) + _varint(image.nbytes)
    return b"".join((head, np.ascontiguousarray(image).data.cast("B")))


def _varint_at(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (raw[at] & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if not raw[at - 1] & 0x80:
            return value, at


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    """Number and value (int or memoryview) of each field of a protobuf message. Raises ValueError or IndexError for
    anything else."""
    at, view = 0, memoryview(raw)
    while at < len(raw):
        key, at = _varint_at(raw, at)
        if key & 7 == _VARINT:
            value, at = _varint_at(raw, at)
            yield key >> 3, value
        elif key & 7 == _FIXED32:
            yield key >> 3, int.from_bytes(view[at : at + 4], "little")
            at += 4
        elif key & 7 == _BYTES:
            length, at = _varint_at(raw, at)
            yield key >> 3, view[at : at + length]
            at += length
        else:
            raise ValueError(f"a protobuf field of kind {key & 7}")


def image_of(raw: bytes) -> tuple[int, np.ndarray]:
    """Time (ns) and uint8[H,W,3] RGB of what `raw_image` gave, the pixels without a copy. Raises ValueError for another
    encoding."""
    found = dict(_fields(raw))
    if bytes(found[4]) != b"rgb8":
        raise ValueError(f"a picture in the encoding {bytes(found[4])!r}")
    time = dict(_fields(bytes(found[1])))
    return time.get(1, 0) * 10**9 + time.get(2, 0), np.frombuffer(found[6], np.uint8).reshape(found[3], found[2], 3)


# JSON


def _object(title: str = "", **properties: Any) -> dict[str, Any]:
    return {"type": "object", **({"title": title} if title else {}), "properties": properties}


def json_schemas(joints: Sequence[str]) -> dict[str, str]:
    """JSON schema texts by name; `joints` are the arm's."""
    number: Any = {"type": ["number", "null"]}
    text = {"type": "string"}
    count: dict[str, Any] = {"type": "integer", "minimum": 0}
    time = _object("time", sec=count, nsec={**count, "maximum": 999_999_999})
    xyz = {axis: {"type": "number"} for axis in "xyz"}
    levels = {"title": "foxglove.LogLevel", "oneOf": [{"title": level.name, "const": int(level)} for level in Level]}
    each, target = _object(**dict.fromkeys(joints, number)), _object(**dict.fromkeys(ACTION_NAMES, number))
    made = [
        _object(
            FRAME_TRANSFORM,
            timestamp=time,
            parent_frame_id=text,
            child_frame_id=text,
            translation=_object("foxglove.Vector3", **xyz),
            rotation=_object("foxglove.Quaternion", **xyz, w={"type": "number"}),
        ),
        _object(LOG, timestamp=time, level=levels, message=text, name=text, file=text, line=count),
        _object(
            JOINTS,
            timestamp=time,
            measured_rad=each,
            measured_rad_s=each,
            goal_rad=each,
            current_a=each,
            temperature_c=each,
            voltage_v=each,
            safety=text,
        ),
        _object(
            COMMAND,
            timestamp=time,
            q_rad=each,
            qd_rad_s=each,
            expert=text,
            gate=number,
            reactive_target=target,
            predictive_target=target,
            sent_target=target,
        ),
        _object(HEALTH, timestamp=time, state=text, level=count, reasons={"type": "array", "items": text}),
    ]
    return {schema["title"]: json.dumps(schema) for schema in made}


def _stamp(t_ns: int) -> dict[str, int]:
    return {"sec": t_ns // 10**9, "nsec": t_ns % 10**9}


def _message(t_ns: int, **fields: Any) -> bytes:
    return json.dumps({"timestamp": _stamp(t_ns), **fields}, allow_nan=False).encode()


def _number(value: float) -> float | None:
    """To a millionth; what is no number is null, which JSON knows."""
    return round(value, 6) if math.isfinite(value) else None


def _named(names: Sequence[str], values: np.ndarray) -> dict[str, float | None]:
    return {name: _number(value) for name, value in zip(names, values.tolist())}


def transform(t_ns: int, parent: str, child: str, T: np.ndarray) -> bytes:
    """A `foxglove.FrameTransform` of `T_parent_from_child` float64[4,4], metres."""
    turn = cv2.Rodrigues(T[:3, :3])[0].ravel()
    angle = float(np.linalg.norm(turn))
    axis = turn * (math.sin(angle / 2) / angle if angle else 0.0)
    rotation = dict(zip("xyzw", [*axis.tolist(), math.cos(angle / 2)]))
    where = dict(zip("xyz", T[:3, 3].tolist()))
    return _message(t_ns, parent_frame_id=parent, child_frame_id=child, translation=where, rotation=rotation)


def log_message(t_ns: int, level: Level, text: str, name: str) -> bytes:
    """A `foxglove.Log` from the part of the program that is called `name`."""
    return _message(t_ns, level=int(level), message=text, name=name, file="", line=0)


def joints_message(joints: Sequence[str], s: JointState) -> bytes:
    """Measured joints, limited goals and telemetry, each by the joint's name."""
    values = {
        "measured_rad": s.q_rad,
        "measured_rad_s": s.qd_rad_s,
        "goal_rad": s.goal_rad,
        "current_a": s.current_a,
        "temperature_c": s.temperature_c,
        "voltage_v": s.voltage_v,
    }
    return _message(s.t_ns, **{k: _named(joints, v) for k, v in values.items()}, safety=s.safety.name)


def command_message(joints: Sequence[str], t_ns: int, command: Command, targets: np.ndarray) -> bytes:
    """A raw command, and the targets float[3,6] (reactive, predictive, sent) that it was made from."""
    reactive, predictive, sent = (_named(ACTION_NAMES, t) for t in targets)
    return _message(
        t_ns,
        q_rad=_named(joints, command.q_rad),
        qd_rad_s=_named(joints, command.qd_rad_s),
        expert=command.expert.name,
        gate=_number(float(command.gate)),
        reactive_target=reactive,
        predictive_target=predictive,
        sent_target=sent,
    )


def health_message(t_ns: int, state: str, level: int, reasons: Sequence[str]) -> bytes:
    """A change of the loop's health; `level` grows with what is wrong, for a plot."""
    return _message(t_ns, state=state, level=level, reasons=list(reasons))
