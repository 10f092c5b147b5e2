"""The part of the fault campaign that needs real processes and a real (pseudo-)terminal: guard, motor process,
unplugging."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from common.slots import SlotError, SlotReader, SlotWriter
from firmware_bridge.motion import guard
from firmware_bridge.motion.config import ArmConfig, ArmError
from firmware_bridge.motion.endings import Exit
from firmware_bridge.motion.messages import COMMAND_BYTES, Command, JointState, RequestKind, SafetyState
from firmware_bridge.motion.motor import COMMAND_SLOT, REQUEST_SLOT, STATE_SLOT
from firmware_bridge.servos.models import MODELS
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.campaign import KOCH, MIDDLE, SO101, SWING
from firmware_bridge.virtual.line import PtyBus
from firmware_bridge.virtual.plant import KinematicPlant

XL330 = dataclasses.replace(KOCH, models=("XL330-M288",) * 6)
ADAPTER = "usb-1a86_USB_Single_Serial_58FA0001-if00"


class LiveRig:
    """A virtual arm on a pseudo-terminal under `folder`, driven by guard and motor process; a thread sends a swing to
    it."""

    def __init__(self, folder: Path, config: ArmConfig = SO101):
        self.folder, self.config = folder, config
        self.plant = KinematicPlant(MIDDLE * 4096 / (2 * np.pi) + 2048)
        models = [MODELS[m] for m in config.model_names]
        self.full_torque = models[0].full_torque
        self.servos = VirtualBus(config.ids, self.plant, models)
        self.by_id = folder / "by-id"
        self.server = PtyBus(self.servos, link=self.by_id / ADAPTER)
        self.keeper = guard.start(os.path.realpath(self.server.path), config, folder, by_id=self.by_id)
        self.requests = SlotWriter(folder / REQUEST_SLOT, 16)
        guard.wait_for_state(self.keeper, folder)
        self._commands = SlotWriter(folder / COMMAND_SLOT, COMMAND_BYTES)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._swing, daemon=True)
        self._thread.start()

    def _swing(self) -> None:
        began = time.monotonic_ns()
        while not self._stop.wait(0.02):
            now = time.monotonic_ns()
            t = (now - began) * 1e-9 * np.pi
            q, qd = MIDDLE + SWING * np.sin(t), SWING * np.pi * np.cos(t)
            self._commands.write(Command(now, now + 150_000_000, q.astype(np.float32), qd.astype(np.float32)).pack())

    def ask(self, kind: RequestKind) -> None:
        self.requests.write(bytes([kind]))

    def state(self) -> JointState | None:
        try:
            got = SlotReader(self.folder / STATE_SLOT).read()
        except SlotError:
            return None
        return JointState.unpack(got[0]) if got else None

    def wait_for(self, what: Callable[[], bool], timeout_s: float) -> float:
        """Seconds until `what()` is true; infinity when it never was."""
        began = time.monotonic()
        while not what():
            if time.monotonic() - began > timeout_s:
                return float("inf")
            time.sleep(0.002)
        return time.monotonic() - began

    def arm(self) -> None:
        self.ask(RequestKind.ARM)
        self.wait_for(lambda: (s := self.state()) is not None and s.safety == SafetyState.ACTIVE, 5)
        time.sleep(0.3)

    def motor_pid(self) -> int:
        return int(Path(f"/proc/{self.keeper.pid}/task/{self.keeper.pid}/children").read_text().split()[0])

    def ramping(self) -> bool:
        return self.servos.get(1, "torque_limit") < self.full_torque or not any(self.torque())

    def torque(self) -> list[int]:
        return [self.servos.get(i, "torque_enable") for i in self.config.ids]

    def replug(self, servos: VirtualBus | None = None, after_s: float = 0.3) -> None:
        """Pull the adapter out, and plug it (or another arm on it) into another port."""
        self.server.close()
        time.sleep(after_s)
        self.server = PtyBus(servos or self.servos, link=self.by_id / ADAPTER)

    def close(self) -> None:
        """Lower the arm and end everything."""
        self._stop.set()
        for _ in range(80):
            if self.keeper.poll() is not None:
                break
            self.ask(RequestKind.LOWER)
            time.sleep(0.1)
        else:
            self.keeper.kill()
        self.keeper.wait()
        self.server.close()


def _row(
    group: int, name: str, said: str, ms: float, limit: float, rig: LiveRig, final: str, recovery: str, safe: bool
) -> dict[str, Any]:
    torque = "off" if not any(rig.torque()) else "out of reach" if final == "REFUSED" else "on, controlled"
    return {
        "group": group,
        "name": name,
        "detected_as": said,
        "time_to_safe_ms": round(ms * 1000, 1),
        "reacted_ms": round(ms * 1000, 1),
        "limit_ms": limit,
        "lead_ms": 0.0,
        "final_state": final,
        "torque": torque,
        "recovery": recovery,
        "safe": bool(safe),
    }


def _killed(rig: LiveRig, number: int, name: str, group: int = 21) -> dict[str, Any]:
    rig.arm()
    os.kill(rig.motor_pid(), number)
    took = rig.wait_for(rig.ramping, 3)
    rig.keeper.wait(8)
    said = (rig.folder / guard.LOG).read_text().strip().splitlines()[-1].removeprefix("guard: ")
    return _row(group, name, said, took, 300, rig, "GUARD", "operator", took <= 0.4 and not any(rig.torque()))


def _interrupted(rig: LiveRig) -> dict[str, Any]:
    rig.arm()
    for _ in range(2):
        os.kill(rig.motor_pid(), signal.SIGINT)
        os.kill(rig.keeper.pid, signal.SIGINT)
    time.sleep(0.2)
    s = rig.state()
    going = s is not None and s.safety == SafetyState.ACTIVE and rig.torque() == [1] * 6
    return _row(
        21,
        "SIGINT twice",
        "ignored: the front door asks for lowering",
        0.0,
        0,
        rig,
        s.safety.name if s else "?",
        "by itself",
        going,
    )


def _second_process(rig: LiveRig) -> dict[str, Any]:
    rig.arm()
    other = guard.start(rig.server.path, rig.config, rig.folder / "second")
    said = ""
    try:
        guard.wait_for_state(other, rig.folder / "second")
    except ArmError as e:
        said = str(e)
    s = rig.state()
    going = s is not None and s.safety == SafetyState.ACTIVE
    return _row(
        21,
        "second process on the port",
        said,
        0.0,
        0,
        rig,
        s.safety.name if s else "?",
        "by itself",
        "in use" in said and going,
    )


def _replugged(rig: LiveRig) -> dict[str, Any]:
    rig.arm()
    old = os.path.realpath(rig.server.path)
    holder = os.dup(rig.server._slave)  # so that the next terminal gets another number
    rig.replug()

    def waits() -> bool:
        s = rig.state()
        return s is not None and s.safety == SafetyState.DISARMED

    waited = rig.wait_for(waits, 8)
    time.sleep(0.3)
    s = rig.state()
    still = s is not None and s.safety == SafetyState.DISARMED  # commands go on, and move nothing
    rig.ask(RequestKind.ARM)
    rig.wait_for(lambda: (s := rig.state()) is not None and s.safety == SafetyState.ACTIVE, 5)
    s = rig.state()
    resumed = s is not None and s.safety == SafetyState.ACTIVE
    os.close(holder)
    moved = old != os.path.realpath(rig.server.path)
    said = (
        f"port lost; same adapter and arm known again {waited:.2f} s after it was back; moved on only when armed again"
    )
    return _row(
        19,
        "replug on another path",
        said,
        waited,
        2000,
        rig,
        s.safety.name if s else "?",
        "operator",
        moved and still and resumed and waited <= 2.0,
    )


def _other_arm(rig: LiveRig) -> dict[str, Any]:
    rig.arm()
    other = VirtualBus(rig.config.ids, KinematicPlant(np.full(6, 2048.0)))
    for i in rig.config.ids:
        other.put(i, "p_gain", 17)
    rig.replug(other)
    took = rig.wait_for(lambda: rig.keeper.poll() is not None, 8)
    said = (rig.folder / guard.LOG).read_text().strip().splitlines()[-1].removeprefix("guard: ")
    untouched = not any(other.get(i, "torque_enable") for i in rig.config.ids)
    return _row(
        19,
        "another arm on the adapter",
        said,
        took,
        2000,
        rig,
        "REFUSED",
        "operator",
        "another arm" in said and untouched,
    )


def _silent(rig: LiveRig) -> dict[str, Any]:
    rig.arm()
    rig.servos.faults.inject("silent-servo", time.monotonic_ns(), servo=3)
    took = rig.wait_for(rig.ramping, 3)
    code = rig.keeper.wait(8)
    s = rig.state()
    said = s.reason if s is not None else ""
    faulted = s is not None and s.safety == SafetyState.FAULT and code == Exit.HOLDING  # nobody has seen it let go
    return _row(1, "silent-servo, in processes", said, took, 400, rig, "FAULT", "operator", took <= 0.5 and faulted)


LIVE: tuple[tuple[str, Callable[[LiveRig], dict[str, Any]]], ...] = (
    ("silent-servo, in processes", _silent),
    ("kill -9 of the motor process", lambda rig: _killed(rig, signal.SIGKILL, "kill -9 of the motor process")),
    (
        "kill -9, XL330 (watchdog does not stop it)",
        lambda rig: _killed(rig, signal.SIGKILL, "kill -9, XL330 (watchdog does not stop it)", 23),
    ),
    ("motor process stopped", lambda rig: _killed(rig, signal.SIGSTOP, "motor process stopped")),
    ("SIGINT twice", _interrupted),
    ("second process on the port", _second_process),
    ("replug on another path", _replugged),
    ("another arm on the adapter", _other_arm),
)


def campaign_live(folder: Path, only: str = "") -> list[dict[str, Any]]:
    """Rows of the faults that need processes; about 20 s."""
    rows = []
    for k, (name, act) in enumerate(LIVE):
        if only in name:
            rig = LiveRig(folder / str(k), XL330 if "XL330" in name else SO101)
            try:
                rows.append(act(rig))
            finally:
                rig.close()
    return rows
