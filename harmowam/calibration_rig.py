"""The live robot for calibration: camera pictures, an arm that moves through the safety machine, the drift check."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.board import Board
from calibration.camera import CalibrationError
from calibration.check import BLOCK, FRAMES, OK, Verdict, check
from calibration.drift_job import stored_reference
from calibration.store import Store
from common.slots import SlotWriter
from common.timing import MOTOR_SILENT_CALIBRATING_S
from firmware_bridge.motion.messages import COMMAND_BYTES, Command, JointState, RequestKind, SafetyState
from firmware_bridge.motion.motor import COMMAND_SLOT, REQUEST_SLOT
from firmware_bridge.motion.session import ArmSession, Interrupts
from harmowam import machine_load
from runtime.cameras.sources import CameraSource
from runtime.cameras.v4l2 import focus, serial
from runtime.robot import SHIPPED, CameraConfig, Robot, RobotError

SETTLE_S = 0.8  # time after a motion until the arm stands still


def take(source: CameraSource, count: int, timeout_s: float = 5.0) -> list[np.ndarray]:
    """`count` new pictures uint8[H,W,3]; raises CalibrationError when none comes for `timeout_s`."""
    out: list[np.ndarray] = []
    seen = source.frame_number
    deadline = time.monotonic() + timeout_s
    while len(out) < count:
        if source.frame_number != seen and (frame := source.newest()) is not None:
            seen = frame.frame_number
            out.append(frame.image)
            deadline = time.monotonic() + timeout_s
        elif time.monotonic() > deadline:
            raise CalibrationError(
                "the camera gives no new pictures: check its cable and that no other program uses it."
            )
        else:
            time.sleep(0.002)
    return out


def camera_config(robot: Robot, name: str) -> CameraConfig:
    """Camera `name` of the robot file; raises RobotError when there is none."""
    if name not in robot.cameras:
        raise RobotError(f"{robot.path} has no camera '{name}': give one of {', '.join(robot.cameras)}.")
    return robot.cameras[name]


def live_identity(robot: Robot, name: str) -> dict[str, Any]:
    """Identity of a live camera as in a calibration record: "serial", "focus" (None: not known), "width", "height"
    (px).

    Raises RobotError when the robot file has no such camera, CalibrationError when its autofocus is on.
    """
    config = camera_config(robot, name)
    at = focus(config.source)
    if at == "auto":
        raise CalibrationError(
            f"camera '{name}' focuses by itself, which changes its lens: switch that off "
            f"(`v4l2-ctl -d {config.source} -c focus_automatic_continuous=0`), then repeat."
        )
    return {"serial": serial(config.source), "focus": at, "width": config.width, "height": config.height}


def refuse_moved(robot: Robot, cameras: Mapping[str, CameraSource], say: Callable[[str], None]) -> dict[str, Verdict]:
    """The drift check before a run, for every camera with a marker in the robot file; returns the verdicts by camera.

    Raises CalibrationError for the verdict BLOCK; warns through `say` for any other verdict that is not OK.
    """
    verdicts = {}
    for name, source in cameras.items():
        config = robot.cameras[name]
        if not config.marker:
            continue
        folder = robot.path.parent / config.calibration
        verdict = check(stored_reference(Store(folder.parent), folder.name), take(source, FRAMES))
        verdicts[name] = verdict
        if verdict.level == BLOCK:
            raise CalibrationError(f"camera '{name}' must not be used: {verdict.reason}.")
        if verdict.level != OK:
            say(f"warning: camera '{name}': {verdict.reason}")
    return verdicts


@dataclass(frozen=True)
class _Move:
    """A motion from `start` to `goal` (float64[J] rad) that begins at `began` (monotonic, s) and takes `seconds`; after
    it the arm stays at `goal`."""

    began: float
    seconds: float
    start: np.ndarray
    goal: np.ndarray

    def at(self, now: float) -> tuple[np.ndarray, np.ndarray]:
        """Goals (rad) and velocities (rad/s), float64[J], at `now` (s); the velocity is 0 at both ends, so the limiter
        changes nothing."""
        s = min(max((now - self.began) / self.seconds, 0.0), 1.0)
        change = self.goal - self.start
        return self.start + change * s * s * (3 - 2 * s), change * 6 * s * (1 - s) / self.seconds


class LiveRig:
    """The real arm, driven through guard and motor process.

    Its torque is off until `enable_torque`; after that it holds the goal of the last `move_to` while this process
    lives. Use it as a context: at its end the arm is lowered and released, also after an exception.
    """

    def __init__(self, robot: Robot, slots: Path, port: str | None = None):
        self.robot, self.slots, self.port = robot, slots, port or robot.port
        self._over = threading.Event()
        with contextlib.ExitStack() as stack:
            interrupts = stack.enter_context(Interrupts())
            interrupts.ignored = True  # an interrupt inside ArmSession() would leave a guard that runs without an owner
            self.session = stack.enter_context(ArmSession(self.port, robot.arm, slots))
            stack.callback(setattr, interrupts, "ignored", True)  # no interrupt may stop the lowering of the arm
            interrupts.ignored = False
            if interrupts.caught:
                raise KeyboardInterrupt
            self._state = self.session.wait_for_state()
            self._stack = stack.pop_all()
        self._commands = SlotWriter(slots / COMMAND_SLOT, COMMAND_BYTES)
        self._requests = SlotWriter(slots / REQUEST_SLOT, 16)
        self._driver = threading.Thread(target=self._drive, name="calibration commands", daemon=True)

    def __enter__(self) -> LiveRig:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._stack.close()

    def enable_torque(self) -> None:
        """Switch the torque on; raises CalibrationError when the arm is not armed within 5 s."""
        self.session.armed = True
        deadline = time.monotonic() + 5
        while self.state().safety == SafetyState.DISARMED:
            self._requests.write(bytes([RequestKind.ARM]))
            if time.monotonic() > deadline:
                raise self._error(f"the arm does not arm ({self.state().reason})", "check its power")
            time.sleep(0.02)
        here = self.state().goal_rad.astype(float)
        self._move = _Move(time.monotonic(), 0.1, here, here)
        self._driver.start()

    def _drive(self) -> None:
        """Thread: 50 commands per second, during a motion and after it. Board detection between two motions may take
        longer than the motor process waits for a command."""
        while not self._over.wait(0.02):
            now = time.monotonic_ns()
            at, rate = self._move.at(now * 1e-9)
            self._commands.write(Command(now, now + 200_000_000, at.astype(np.float32), rate.astype(np.float32)).pack())

    def _error(self, what: str, hardware: str) -> CalibrationError:
        """`what` happened, and the next step; `hardware`: what a real arm may need."""
        return CalibrationError(f"{what}: {machine_load.mend(self.port, hardware, machine_load.load())}, then repeat.")

    def state(self) -> JointState:
        """The newest state; raises CalibrationError when it is older than `MOTOR_SILENT_CALIBRATING_S`: the motor
        process has ended or lost the port."""
        got = self._state.read()
        state = None if got is None else JointState.unpack(got[0])
        if state is None or time.monotonic_ns() - state.t_ns > MOTOR_SILENT_CALIBRATING_S * 1e9:
            raise self._error("the motor process is silent", "check the adapter and the arm's power")
        return state

    def move_to(self, q: np.ndarray, velocity: float = 0.5, settle_s: float = SETTLE_S) -> np.ndarray:
        """Move to joint angles `q` float64[J] (rad), or [J-1] to leave the gripper where it is, at most `velocity`
        (rad/s); wait until the arm stands still; return the measured angles float64[J-1] (rad), the mean of 10.

        Raises CalibrationError when the safety machine stops the arm.
        """
        start = self.state().goal_rad.astype(float)
        goal = np.append(np.asarray(q, float), start[len(q) :])
        seconds = max(0.3, float(np.abs(goal - start).max()) / velocity)
        self._move = _Move(time.monotonic(), seconds, start, goal)
        while time.monotonic() < self._move.began + seconds + settle_s:
            state = self.state()
            if state.safety in (SafetyState.SAFE_STOP, SafetyState.FAULT):
                raise self._error(f"the arm stopped ({state.reason})", "clear its way")
            time.sleep(0.02)
        readings = []
        for _ in range(10):
            readings.append(self.state().q_rad[:-1].astype(float))
            time.sleep(0.02)
        return np.mean(readings, axis=0)


def default_store(robot: Robot) -> Path:
    """Folder of the calibration store: `calibration` beside the robot file; for a robot file shipped with this project
    `calibration-store/NAME` in the working directory."""
    return (
        Path("calibration-store") / robot.path.stem
        if robot.path.parent == SHIPPED
        else robot.path.parent / "calibration"
    )


def marker_board(robot: Robot, camera: str, text: str | None) -> Board:
    """The marker named on the command line or in the robot file; raises RobotError when there is none, CalibrationError
    when it does not tell how it stands."""
    chosen = text or (robot.cameras[camera].marker if camera in robot.cameras else "")
    if not chosen:
        own = f'add marker = "charuco:..." under [camera.{camera}] in {robot.path}, or '
        raise RobotError(f"no marker is configured: {'' if robot.path.parent == SHIPPED else own}give --marker.")
    return Board.parse(chosen).for_poses()
