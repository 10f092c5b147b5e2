"""Functions of `harmowam calibrate joints`: guided calibration, EEPROM comparison, sign check, LeRobot's file."""

from __future__ import annotations

import contextlib
import json
import select
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from calibration import joints, report
from calibration.camera import CalibrationError
from calibration.joints import JointCalibration
from calibration.joints_lerobot import from_lerobot, to_lerobot
from calibration.joints_servos import eeprom, reported_steps
from calibration.store import Store, new_record, write_result
from common.schema import shown
from firmware_bridge.bus.master import Bus
from firmware_bridge.bus.port import Port
from firmware_bridge.motion.arm import Arm
from harmowam.calibration_signs import check_signs
from runtime.robot import Robot

NAME = "joints"
MOST_NAMED = 8  # ignored keys of LeRobot's file that are named
END_RAD = 0.1  # the user is told when a joint's range ends further than this inside the robot file's limits


def _save(store: Store, made: JointCalibration, why: str, page: Path) -> str:
    current = store.known_hash(NAME)
    try:
        before = _stored(store)
    except CalibrationError:  # there is none yet, or it is damaged and replaced by the new one
        before = None
    report.joints_page(page, made, before)
    digest = store.put(
        new_record(
            "joints",
            NAME,
            made.to_json(),
            identity={"ids": [j.id for j in made.joints]},
            parents=[current] if current else [],
            uncertainty={},
            evidence={"how": why},
        )
    )
    store.set_current(NAME, digest, why)
    return digest


def _refuse_simulated(robot: Robot) -> None:
    if robot.simulated:
        raise CalibrationError(
            "the simulated arm needs no joint calibration: name your arm's file with --robot (docs/arm.md)."
        )


def _stored(store: Store) -> JointCalibration:
    return JointCalibration.from_json(store.get(NAME, kind="joints")["result"])


def guided(
    robot: Robot,
    store: Store,
    port: str,
    page: Path,
    ask: Callable[[str], object],
    say: Callable[[str], None],
    poll_s: float = 0.02,
    sign_check: bool = True,
) -> dict[str, Any]:
    """Calibrate the joints of an arm that a person moves by hand, with the torque off, and store the result.

    The person moves the arm to its zero pose, then every joint from stop to stop; with `sign_check` the arm then moves
    each joint and the person says in which direction it turned. The result is stored after that. `ask` shows a text and
    waits for Enter, `say` shows a line, `page` is the report to write.

    Raises CalibrationError, PortError, ArmError; an arm whose torque is on is refused and keeps its torque.
    """
    _refuse_simulated(robot)
    with _opened(robot, port) as arm:
        arm.check(to_move=False)  # a joint outside the range of its goal positions is accepted: calibration mends that
        if arm.energised():
            raise CalibrationError(
                "the arm is energised and would not move by hand: lower it (`harmowam run` does at its end), then "
                "repeat."
            )
        kept = eeprom(arm)
        ask(f"Put every joint at its zero (arm {robot.family.ZERO_POSE}), shut the jaw, then press Enter")
        recorder = joints.RangeRecorder(robot.arm, kept, reported_steps(arm))
        free = [n for n, stopless in zip(robot.arm.joints, recorder.stopless, strict=True) if stopless]
        say(f"move every joint from stop to stop{f' (but for {_listed(free)})' if free else ''}, then press Enter")
        while True:
            recorder.add(reported_steps(arm))
            if _enter_pressed(poll_s):
                if not recorder.missing():
                    break
                say(f"not moved far enough yet: {', '.join(recorder.missing())}")
        made = recorder.finish()
    calibrated = made.apply(robot.arm)
    if sign_check:
        check_signs(robot, calibrated, port, ask, say)
    digest = _save(store, made, "guided", page)
    cut = "".join(f"\n{line}" for line in _narrowed(robot, made, free))
    return {
        "hash": digest,
        **made.to_json(),
        "report": str(page),
        "said": f"joints stored as {digest[:10]}; name it in the robot file: "
        f'[arm] calibration = "calibration/joints"\nreport: {page}{cut}',
    }


@contextlib.contextmanager
def _opened(robot: Robot, port: str) -> Iterator[Arm]:
    """The arm, on a port that this process has opened and locked. Raises PortError when another program uses it."""
    with contextlib.closing(Port.open(port, robot.arm.baud)) as opened:
        yield Arm(Bus(opened, robot.arm.baud, protocol=robot.arm.protocol), robot.arm)


def _listed(names: list[str]) -> str:
    """Join names in a sentence: "one, two and three"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _narrowed(robot: Robot, made: JointCalibration, free: list[str]) -> list[str]:
    """A line for each joint of `free` (without stops) whose servo's turn ends inside the robot file's limits."""
    out = []
    for name, low, high in zip(robot.arm.joints, robot.arm.lower, robot.arm.upper, strict=True):
        ends = made.limits(next(j for j in made.joints if j.name == name))
        if name in free and (ends[0] > low + END_RAD or ends[1] < high - END_RAD):
            a, b = (round(float(v)) for v in np.degrees((max(low, ends[0]), min(high, ends[1]))))
            out.append(
                f"{name} is kept within {a} to {b} degrees, for its servo's turn ends there: mount its horn half a "
                "turn on, then calibrate again, if it is to go further"
            )
    return out


def _enter_pressed(wait_s: float) -> bool:
    ready, _, _ = select.select([sys.stdin], [], [], wait_s)
    if not ready:
        return False
    if not sys.stdin.readline():
        time.sleep(wait_s)  # end of input
        raise CalibrationError("the joints were not all moved from stop to stop before the input ended: repeat.")
    return True


def compare_eeprom(robot: Robot, store: Store, port: str) -> dict[str, Any]:
    """Compare the stored offsets and modes with those in the servos. Raises CalibrationError, PortError, ArmError."""
    _refuse_simulated(robot)
    made = _stored(store)
    with _opened(robot, port) as arm:
        differs = joints.compare(made, eeprom(arm))
    said = (
        "EEPROM and joint calibration agree"
        if not differs
        else "; ".join(differs) + ": run `harmowam calibrate joints`"
    )
    return {"differs": differs, "said": said}


def stored_signs(
    robot: Robot, store: Store, port: str, ask: Callable[[str], object], say: Callable[[str], None]
) -> dict[str, Any]:
    """The sign check alone, with the stored calibration. Raises CalibrationError that names the joints that turned in
    the wrong direction."""
    _refuse_simulated(robot)
    check_signs(robot, _stored(store).apply(robot.arm), port, ask, say)
    return {"turned": [], "said": "every joint turns the way its angle says"}


def import_lerobot(robot: Robot, store: Store, path: Path, page: Path) -> dict[str, Any]:
    """Store LeRobot's file `path` as this arm's joint calibration. Raises CalibrationError for a file of another
    arm."""
    _refuse_simulated(robot)
    made, ignored = from_lerobot(path, robot.arm)
    made.apply(robot.arm)
    digest = _save(store, made, f"import of {path.name}", page)
    keys = ", ".join(map(shown, ignored[:MOST_NAMED])) + (" and others" if len(ignored) > MOST_NAMED else "")
    said = (
        (f"ignored, for it is no joint: {keys}\n" if ignored else "")
        + f"joints of {path} stored as {digest[:10]}\nreport: {page}\n"
        "next: see that every joint turns the right way: `harmowam calibrate joints --signs`"
    )
    return {"hash": digest, **made.to_json(), "ignored": list(ignored), "report": str(page), "said": said}


def export_lerobot(store: Store, path: Path) -> dict[str, Any]:
    """Write the stored calibration to `path` in LeRobot's form. Raises CalibrationError."""
    data = to_lerobot(_stored(store))
    write_result(path, (json.dumps(data, indent=4) + "\n").encode())
    return {"joints": data, "said": f"wrote {path}"}
