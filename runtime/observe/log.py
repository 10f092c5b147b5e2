"""The log of a run as MCAP: every frame and input of the engines, Prior numbers, raw, limited and applied commands.

Enough to run the same steps again and get the same actions (`runtime.observe.replay`), and readable by other programs:
pictures, places and messages are in Foxglove's schemas, numbers are JSON. Frames are kept as they came: a lossy picture
gives other actions. Topics are in `docs/runtime.md`. A run that writes a log never waits for the disk.
"""

from __future__ import annotations

import enum
import json
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mcap.writer import CompressionType, Writer

from calibration.camera import Camera
from common.clock import prefer
from common.timing import LOG_PRIORITY
from firmware_bridge.motion.messages import Command, JointState, SafetyState
from runtime.cameras.frames import Frame
from runtime.contracts import Observation, Prior
from runtime.observe import schemas
from runtime.observe.records import (
    AFTER_GAP,
    CAMERA,
    ENCODING,
    FUTURE,
    HEALTH,
    PRIOR,
    RESET,
    SENT,
    STATE,
    STEP,
    VERSION,
    LogError,
    packed_future,
    packed_prior,
    packed_tick,
)
from runtime.observe.schemas import BASE, TOOL, Level

WAITING = 256  # most records between the loops and the disk; frames are held by reference
RESERVE_BYTES = 256_000_000  # left free on the disk: the rest of the system needs room to write, too
CHUNK_BYTES = 1_000_000  # compressed at a time; a log that is cut off loses one of these at most
TOOL_PERIOD_NS = (
    38_000_000  # about 25 times a second a viewer gets the tool's place: it costs more than all other numbers
)
STOPPED = {SafetyState.SAFE_STOP: Level.ERROR, SafetyState.FAULT: Level.ERROR}  # what counts as more than information


class LogWriter:
    """Writes `path` from a thread of its own. `fault` says why writing stopped, empty while all is well; control goes
    on.

    `meta` is what `runtime.observe.replay.run_meta` gives; `tool` gives `T_base_from_tool` float64[4,4] of joint angles
    float32[J].
    """

    def __init__(
        self,
        path: Path,
        meta: dict[str, Any],
        reserve_bytes: int = RESERVE_BYTES,
        tool: Callable[[np.ndarray], np.ndarray] | None = None,
    ):
        self.path, self.fault, self.dropped, self.bytes = path, "", 0, 0
        self.meta = {"version": VERSION, **meta}
        self._joints: Sequence[str] = meta.get("joints", ())
        self._tool = tool
        self._partial = path.with_name(path.name + ".partial")
        self._reserve = reserve_bytes
        self._waiting: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._stop = self._gap = False
        self._frames: dict[str, int] = {}  # number of each camera's newest picture in the log
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._partial, "wb")  # noqa: SIM115  (closed by the thread)
        except OSError as e:
            raise LogError(
                f"log {path} cannot be written ({e.strerror}): give another place with --log or --record."
            ) from e
        self._writer = Writer(self._file, chunk_size=1 << 40, compression=CompressionType.LZ4)
        self._writer.start(profile="", library=f"harmowam log {VERSION}")
        self._writer.add_metadata("run", {"json": json.dumps(self.meta, sort_keys=True)})
        self._channels: dict[str, int] = {}
        self._schemas: dict[str, int] = {}
        self._texts = schemas.json_schemas(self._joints)
        self._motor = (SafetyState.DISARMED, "")
        self._tool_ns = -TOOL_PERIOD_NS
        self._whole = 0  # bytes of the file that are whole records
        self._flush()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    @property
    def empty(self) -> bool:
        """Whether no record was written."""
        return not self._channels

    # Called by the loops: these take microseconds and never block.

    def _later(self, work: Callable[[], None]) -> bool:
        """Queue `work` for the thread; returns whether there was room."""
        if self.fault:
            return False
        if len(self._waiting) >= WAITING:
            self.dropped += 1
            return False
        self._waiting.append(work)
        self._wake.set()
        return True

    def tick(
        self,
        t_ns: int,
        obs: Observation,
        frames: Mapping[str, Frame],
        prior_number: int,
        command: Command | None,
        targets: np.ndarray,
        *,
        reset: bool,
        sent: bool,
    ) -> None:
        """One fast step; `frames` are those of `obs`, whose pictures nobody may write to afterwards."""
        flags = RESET * reset + SENT * sent + AFTER_GAP * self._gap
        self._gap = not self._later(lambda: self._put_tick(t_ns, obs, frames, prior_number, command, targets, flags))

    def prior(self, prior: Prior, obs: Observation, t_ns: int) -> None:
        """One slow step. Call it before the Prior is used: the log keeps the order of cause and effect."""
        self._later(lambda: self._put_prior(prior, obs, t_ns))

    def state(self, state: JointState) -> None:
        """What the motor process did: limited goals, measured joints."""
        self._later(lambda: self._put_state(state))

    def health(self, t_ns: int, state: enum.IntEnum, reasons: Sequence[str]) -> None:
        """The loop's health went into `state`, whose number grows with what is wrong (`runtime.loop.health.Health`)."""
        self._later(lambda: self._put_health(t_ns, state, reasons))

    def message(self, t_ns: int, level: Level, text: str) -> None:
        """A line for people who look at the run."""
        self._later(lambda: self._put_message(t_ns, level, text, "policy"))

    # Called in the thread.

    def _put(self, topic: str, t_ns: int, data: bytes, sequence: int = 0, schema: str = "") -> None:
        """`sequence`: MCAP's name for the number of a message, here of its frame, fast step, Prior or tick; readers
        know it by this name. `schema`: name of a well-known one; "" for what only replay reads."""
        channel = self._channels.get(topic)
        if channel is None:
            pictures = schema == schemas.RAW_IMAGE
            encoding = ENCODING if not schema else schemas.PROTOBUF if pictures else schemas.JSON
            channel = self._writer.register_channel(topic, encoding, self._schema(schema) if schema else 0)
            self._channels[topic] = channel
        self._writer.add_message(channel, t_ns, data, t_ns, sequence & 0xFFFFFFFF)
        self.bytes += len(data)

    def _schema(self, name: str) -> int:
        if name not in self._schemas:
            pictures = name == schemas.RAW_IMAGE
            text = schemas.raw_image_schema() if pictures else self._texts[name].encode()
            encoding = schemas.PROTOBUF if pictures else "jsonschema"
            self._schemas[name] = self._writer.register_schema(name, encoding, text)
        return self._schemas[name]

    def _put_places(self, t_ns: int) -> None:
        """Where the cameras are: fixed to the base, or to the tool. Written once, in a topic for each camera, so that a
        viewer finds it wherever it starts to read."""
        if not self.empty:
            return
        for name, raw in self.meta.get("calibrations", {}).items():
            camera = Camera.from_json(raw)
            for parent, T in ((BASE, camera.T_base_from_cam), (TOOL, camera.T_tool_from_cam)):
                if T is not None:
                    place = schemas.transform(t_ns, parent, schemas.camera_frame(name), T)
                    self._put(f"transform/{name}", t_ns, place, schema=schemas.FRAME_TRANSFORM)

    def _put_tick(
        self,
        t_ns: int,
        obs: Observation,
        frames: Mapping[str, Frame],
        prior_number: int,
        command: Command | None,
        targets: np.ndarray,
        flags: int,
    ) -> None:
        self._put_places(t_ns)
        for name, f in frames.items():
            if self._frames.get(name) != f.frame_number:
                picture = schemas.raw_image(schemas.camera_frame(name), f.t_capture_ns, f.image)
                self._put(CAMERA + name, f.t_capture_ns, picture, f.frame_number, schemas.RAW_IMAGE)
                self._frames[name] = f.frame_number
        numbers = {name: f.frame_number for name, f in frames.items()}
        self._put(STEP, t_ns, packed_tick(t_ns, obs, numbers, prior_number, command, targets, flags), obs.number)
        if command is not None:
            shown = schemas.command_message(self._joints, t_ns, command, targets)
            self._put("command", t_ns, shown, obs.number, schemas.COMMAND)

    def _put_prior(self, prior: Prior, obs: Observation, t_ns: int) -> None:
        self._put(PRIOR, prior.t_ready_ns, packed_prior(prior, obs, t_ns), prior.number)
        if prior.future.size:  # a policy without a world model predicts nothing
            self._put(FUTURE, prior.t_ready_ns, packed_future(prior), prior.number)

    def _put_state(self, state: JointState) -> None:
        self._put_places(state.t_ns)
        self._put(STATE, state.t_ns, state.pack(), state.tick)
        self._put("joints", state.t_ns, schemas.joints_message(self._joints, state), state.tick, schemas.JOINTS)
        if self._tool is not None and state.t_ns - self._tool_ns >= TOOL_PERIOD_NS:
            self._tool_ns = state.t_ns
            place = schemas.transform(state.t_ns, BASE, TOOL, self._tool(state.q_rad))
            self._put("transform/tool", state.t_ns, place, state.tick, schemas.FRAME_TRANSFORM)
        if (state.safety, state.reason) != self._motor:
            self._motor = state.safety, state.reason
            said = state.safety.name + (f": {state.reason}" if state.reason else "")
            self._put_message(state.t_ns, STOPPED.get(state.safety, Level.INFO), said, "motor")

    def _put_health(self, t_ns: int, state: enum.IntEnum, reasons: Sequence[str]) -> None:
        self._put(HEALTH, t_ns, schemas.health_message(t_ns, state.name, int(state), reasons), schema=schemas.HEALTH)
        level = Level(min(max(int(state) + 1, Level.INFO), Level.FATAL))
        self._put_message(t_ns, level, f"{state.name}: {'; '.join(reasons)}" if reasons else state.name, "health")

    def _put_message(self, t_ns: int, level: Level, text: str, name: str) -> None:
        self._put("log", t_ns, schemas.log_message(t_ns, level, text, name), schema=schemas.LOG)

    def _flush(self) -> None:
        self._writer.flush()
        self._whole = self._file.tell()

    def _run(self) -> None:
        prefer(LOG_PRIORITY)
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
                if self._stop and self.empty:  # nothing was driven: keep an earlier log of this name
                    self._file.close()
                    os.unlink(self._partial)
                    return
                if self._stop:
                    self._writer.add_metadata("end", {"dropped": str(self.dropped)})
                    self._writer.finish()
                    self._flush_file()
                    os.replace(self._partial, self.path)
                    return
        except Exception as e:  # whatever it was: the loops are told in `fault` and drive on
            self.fault = f"recording stopped: {e.strerror if isinstance(e, OSError) else repr(e)}"
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
        except OSError:  # the log stays at `path`.partial, and `read_log` reads it there
            pass

    def close(self) -> None:
        """Write what waits, finish the file and give it its name. After a full disk, what fitted is kept. A log without
        a record is taken away. Closing twice is allowed.
        """
        self._stop = True
        self._wake.set()
        self._thread.join()
        self._waiting.clear()
