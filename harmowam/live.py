"""A live run, wired together: simulator (if the robot is simulated), guard and motor process, policy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.camera import CalibrationError, Camera, load_camera
from firmware_bridge import guard
from runtime.bundle import Bundle
from runtime.cameras import CameraError, CameraSource, open_camera
from runtime.robot import Robot
from runtime.two_rate import Policy, RunError, timing_report


@dataclass(frozen=True)
class LiveRun:
    """What a run left behind."""

    policy: Policy
    report: dict[str, Any]
    truth: dict[str, float | bool]
    interrupted: bool


def resident_mb(pids: list[int]) -> float:
    """Resident memory of processes together, MB (proportional set size: shared pages are counted once)."""
    total = 0.0
    for pid in pids:
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) / 1024
        except OSError:
            continue
    return round(total, 1)


def children(pid: int) -> list[int]:
    """Direct child processes."""
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def calibrations(robot: Robot, slots: Path) -> dict[str, Camera]:
    """Each camera's calibration, checked against the resolution it is used at."""
    out = {}
    for name, config in robot.cameras.items():
        path = slots / f"{name}.json" if config.calibration == "sim" else robot.path.parent / config.calibration
        camera = load_camera(path)
        if (camera.width, camera.height) != (config.width, config.height):
            raise CalibrationError(
                f"camera '{name}' is calibrated at {camera.width}x{camera.height} ({path}) and used at {config.width}x{config.height}: "
                "calibrate it at the resolution of the robot file."
            )
        out[name] = camera
    return out


def live(
    bundle_path: Path,
    robot: Robot,
    task: str | None,
    seconds: float,
    *,
    port: str | None = None,
    seed: int = 0,
    policy: str = "gated",
    keep_frames: bool = False,
    stop_at_success: bool = False,
    say: Callable[[str], None] = lambda line: None,
    real_time_priority: int = 20,
) -> LiveRun:
    """Run the two-rate loop on `robot` for `seconds`; the arm is lowered and released whatever happens.

    Raises BundleError, RobotError, CameraError, CalibrationError, ArmError or RunError, each one sentence and a next step.
    """
    began = time.monotonic()
    bundle = Bundle.load(bundle_path)
    missing = sorted(set(bundle.manifest.cameras) - set(robot.cameras))
    if missing:
        raise CameraError(
            f"the bundle needs camera '{missing[0]}', which {robot.path} does not have: add it under [camera.{missing[0]}]."
        )
    if task is not None:
        bundle.task(task)
    with tempfile.TemporaryDirectory(prefix="harmowam-", ignore_cleanup_errors=True) as folder:
        slots = Path(folder)
        simulator: subprocess.Popen[str] | None = None
        keeper: subprocess.Popen[bytes] | None = None
        cameras: dict[str, CameraSource] = {}
        interrupted: list[int] = []
        driver: Policy | None = None
        armed = False
        old = {}
        try:
            simulation_s = 0.0
            if robot.simulated:
                from sim import server

                say("starting the simulated robot")
                fps = max(c.fps for c in robot.cameras.values())
                started = time.monotonic()
                simulator, info = server.start(slots, seed, task, fps)
                simulation_s = time.monotonic() - started
                port, task = port or info["port"], info["instruction"]
            if task is None:
                raise RunError(
                    "no task was given: name one with --task ("
                    + ", ".join(f"'{t}'" for t in bundle.manifest.tasks)
                    + ")."
                )
            keeper = guard.start(port or robot.port, robot.arm, slots, real_time_priority)
            for name in bundle.manifest.cameras:
                cameras[name] = open_camera(robot.cameras[name], slots)
            driver = Policy(
                bundle, task, cameras, calibrations(robot, slots), slots, robot.fast_hz, robot.slow_hz, policy
            )
            driver.recorder.frames = keep_frames
            driver.warm_up()
            state_slot = guard.wait_for_state(keeper, slots)

            def interrupt(number: int, frame: object) -> None:
                interrupted.append(number)
                assert driver is not None
                driver.stop()

            old = {s: signal.signal(s, interrupt) for s in (signal.SIGINT, signal.SIGTERM)}
            say(f"task: {task}")
            driver.arm(state_slot)
            armed = True

            def succeeded() -> bool:
                from sim import server

                return bool(server.read_truth(slots)["success"])

            processes = [os.getpid(), keeper.pid, *children(keeper.pid)]
            memory: list[float] = []

            def watch() -> bool:
                if not memory and time.monotonic() - began > 4:
                    memory.append(resident_mb(processes))
                return stop_at_success and robot.simulated and succeeded()

            try:
                counts = driver.run(seconds, watch)
            finally:
                say("lowering the arm")
            truth: dict[str, float | bool] = {}
            if robot.simulated:
                from sim import server

                truth = dict(server.read_truth(slots))
                truth["success_after_s"] = (
                    max(0.0, (float(truth["first_success_ns"]) - counts.began_ns) * 1e-9)
                    if truth["first_success_ns"]
                    else 0.0
                )
            last = driver.lower()
            armed = False
            code = keeper.wait(5)
            report = timing_report(driver)
            first_ns = counts.first_command_ns
            first_s = round(first_ns * 1e-9 - began - simulation_s, 3) if first_ns else None
            report.update(
                task=task,
                robot=robot.name,
                policy=policy,
                bundle=bundle.manifest.name,
                engine="onnxruntime",
                quantization=bundle.manifest.quantization.get("format", "fp32"),
                motor_missed_ticks=last.missed_ticks,
                motor_exit_code=code,
                rss_mb=memory[0] if memory else resident_mb(processes),
                time_to_first_command_s=first_s,
                real_time=driver.granted,
            )
            if robot.simulated:
                report["success"] = bool(truth["success"])
            return LiveRun(driver, report, truth, bool(interrupted))
        finally:
            if armed and driver is not None:
                try:
                    driver.lower()
                except RunError as e:
                    print(f"error: {e}", file=sys.stderr)
            for number, handler in old.items():
                signal.signal(number, handler)
            if keeper is not None:
                end_guard(keeper, slots)
            for camera in cameras.values():
                camera.close()
            if simulator is not None:
                simulator.terminate()
                simulator.wait(5)


def end_guard(keeper: subprocess.Popen[bytes], slots: Path) -> None:
    """Let a guard that is still running finish: ask for lowering once more, then wait. It is never killed while the arm is energised."""
    if keeper.poll() is None:
        from firmware_bridge.messages import RequestKind
        from firmware_bridge.motor import REQUEST_SLOT
        from firmware_bridge.slots import SlotWriter

        SlotWriter(slots / REQUEST_SLOT, 16).write(bytes([RequestKind.LOWER]))
        try:
            keeper.wait(12)
        except subprocess.TimeoutExpired:
            print("error: the guard does not end: switch the arm's power off if it is still stiff.", file=sys.stderr)
