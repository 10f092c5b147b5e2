"""Both loops of a robot whose guard already runs on the same slots: `python -m runtime.loop --help`."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from pathlib import Path
from typing import Any, get_args

import msgspec

from common.errors import Mendable
from common.slots import SlotReader
from firmware_bridge.motion import endings
from firmware_bridge.motion.messages import RequestKind
from firmware_bridge.motion.motor import STATE_SLOT
from firmware_bridge.motion.session import newest_state, settle_apart, stopped
from runtime.bundle import Bundle
from runtime.cameras.process import open_cameras
from runtime.cameras.sources import calibrations
from runtime.compute import Engine, choose
from runtime.loop.timing import timing_report
from runtime.loop.two_rate import Driver
from runtime.observe.episode import LOG, keep
from runtime.robot import Robot, load_robot


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Policy process: both loops of a robot whose guard already runs on the same slots. "
        "Normally `harmowam run` starts everything."
    )
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--robot", required=True, help="a shipped robot or a robot file")
    parser.add_argument("--task", required=True, help="an instruction that the bundle knows")
    parser.add_argument("--slots", type=Path, required=True, help="folder of the slots")
    parser.add_argument(
        "--engine", choices=get_args(Engine), help="what networks run on (default: the robot file's [compute])"
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--record", type=Path, help="folder for the log (run.mcap) and the run's numbers")
    parser.add_argument("--log", type=Path, help="MCAP file for every input and output of the engines")
    args = parser.parse_args()
    if args.record is not None and args.log is not None:
        parser.error("--record writes a log, too: leave --log out")
    return args


def drive(driver: Driver, robot: Robot, slots: Path, seconds: float) -> dict[str, Any]:
    """Arm, run for `seconds` or until SIGINT or SIGTERM, lower; returns the report of the loops."""
    driver.warm_up()
    state_slot = SlotReader(slots / STATE_SLOT)
    told: list[int] = []

    def stop(number: int, frame: object) -> None:
        told.append(number)
        driver.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    held = ""
    try:
        driver.arm(state_slot)
        driver.run(seconds)
        held = "" if told else driver.why_held()
    finally:
        lowering = not stopped(newest_state(slots))
        driver.request(RequestKind.LOWER)
        settle_apart(slots, robot.arm, lowering, held)
    return timing_report(driver, robot.arm.motor_hz)


def main() -> int:
    args = parsed()
    try:
        bundle, robot = Bundle.load(args.bundle), load_robot(args.robot)
        bundle.check_arm(robot.arm.family, robot.path)
        asked = msgspec.structs.replace(robot.compute, engine=args.engine or robot.compute.engine)
        chosen = choose(bundle, asked)
        if chosen.note:
            print(chosen.note, file=sys.stderr)
        with open_cameras(robot, bundle.manifest.cameras, args.slots) as cameras:
            driver = Driver(
                bundle,
                args.task,
                cameras,
                calibrations(robot, args.slots),
                args.slots,
                robot.fast_hz,
                robot.slow_hz,
                compute=chosen,
                log=args.log if args.record is None else args.record / LOG,
                ends=(robot.arm.lower, robot.arm.upper),
            )
            with contextlib.closing(driver):
                report = drive(driver, robot, args.slots, args.seconds)
        if args.record is not None:  # the log is whole before its report is there
            assert driver.record.log is not None
            keep(driver.record.log, args.record, report)
        print(json.dumps(report, indent=1, sort_keys=True))
    except Mendable as e:
        print(f"error: {e}", file=sys.stderr)
        return endings.exit_code(endings.Exit.REFUSED)
    return endings.exit_code(endings.Exit.REST)


if __name__ == "__main__":
    sys.exit(main())
