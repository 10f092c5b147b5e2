"""A live run, wired together: simulator (if the robot is simulated), guard and motor process, policy."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibration.camera import Camera, moved_mount, parallax
from firmware_bridge.motion.motor import tell
from firmware_bridge.motion.session import ArmSession, Interrupts
from harmowam import __version__
from harmowam.calibration_rig import refuse_moved
from runtime.bundle import Bundle, default_backend
from runtime.cameras.sources import CameraSource, calibrations, open_cameras
from runtime.loop.timing import timing_report
from runtime.loop.two_rate import Policy, RunError
from runtime.observe.episode import LOG
from runtime.observe.episode import keep as keep_beside
from runtime.observe.profile import processor_shares, processor_ticks
from runtime.preprocess import on_gpu
from runtime.robot import Robot
from sim import server

MOTOR_PRIORITY = 20  # of SCHED_FIFO: above both loops of the policy (runtime/loop/two_rate.py)


@dataclass(frozen=True)
class LiveRun:
    """What a run left behind."""

    policy: Policy
    report: dict[str, Any]


def resident_mb(pids: list[int]) -> float:
    """Resident memory of processes together, MB; pages that they share (Python, numpy) are counted for each of them."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
        except OSError:
            continue
    return round(total / 1e6, 1)


def children(pid: int) -> list[int]:
    """Direct child processes."""
    try:
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def memory_folder() -> str | None:
    """Where slots lie: in memory if there is such a place. Mapped pages of a disk wait, now and then, for its write-back."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def sweep(folder: Path) -> None:
    """Remove what killed runs left in `folder`: slots of processes that are gone."""
    for left in folder.glob("harmowam-*-*"):
        owner = left.name.split("-")[1]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(left, ignore_errors=True)


def process_began_s() -> float:
    """When this process was started, on the monotonic clock: what a user waits for includes the imports."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))


def live(
    bundle_path: Path,
    robot: Robot,
    task: str | None,
    seconds: float,
    *,
    port: str | None = None,
    seed: int = 0,
    policy: str = "gated",
    record: Path | None = None,
    stop_at_success: bool = False,
    say: Callable[[str], None] = lambda line: None,
    began_s: float | None = None,
    faults: tuple[str, ...] = (),
    inject: Mapping[str, float] | None = None,
    compensate: bool = True,
    log: Path | None = None,
) -> LiveRun:
    """Run the two-rate loop on `robot` for `seconds`; the arm is lowered and released whatever happens.

    `record`: the folder that keeps the log up to then with the run's config and report: how it ended (`error`, `interrupted`), what the
    simulator's judge says, timing. `log`: a file for the log alone. `faults`: NAME@SECONDS each, for the virtual servo bus. `began_s`:
    what the time to the first command is counted from (default: now).

    Raises BundleError, RobotError, CameraError, CalibrationError, ArmError or RunError, each one sentence and a next step.
    """
    began = time.monotonic() if began_s is None else began_s
    if record is not None and log is not None:
        raise RunError(f"--record writes a log, too ({record / LOG}): leave --log out.")
    if not 0 < seconds < float("inf"):
        raise RunError(f"a run of {seconds} s makes no sense: give --seconds a positive number.")
    if robot.simulated and port is not None:
        raise RunError(
            "the simulated robot brings its own bus: to drive an arm, copy runtime/robots/so101.toml and name it with --robot."
        )
    if record is not None:
        make_folder(record, "--record")
    bundle = Bundle.load(bundle_path)
    if task is not None:
        bundle.task(task)
    elif not robot.simulated:
        known = ", ".join(f"'{t}'" for t in bundle.manifest.tasks)
        raise RunError(f"no task was given: name one with --task ({known}).")
    sweep(Path(memory_folder() or tempfile.gettempdir()))
    driver: Policy | None = None
    session: ArmSession | None = None
    interrupts = Interrupts()
    report: dict[str, Any] = {}
    simulation_s = 0.0
    try:
        with contextlib.ExitStack() as stack:
            prefix = f"harmowam-{os.getpid()}-"
            made = tempfile.TemporaryDirectory(prefix=prefix, dir=memory_folder(), ignore_cleanup_errors=True)
            slots = Path(stack.enter_context(made))
            stack.enter_context(interrupts)
            if robot.simulated:
                say("starting the simulated robot")
                started = time.monotonic()
                info = stack.enter_context(_simulated(robot, slots, seed, task, faults))
                simulation_s = time.monotonic() - started
                port, task = info["port"], info["instruction"]
            assert task is not None
            cameras: dict[str, CameraSource] = {}
            stack.callback(lambda: _close((*cameras.values(), *([driver] if driver is not None else []))))
            interrupts.deaf = True  # a guard that runs and is not known yet could not be ended
            session = stack.enter_context(ArmSession(port or robot.port, robot.arm, slots, MOTOR_PRIORITY))
            stack.callback(_put_down, session, interrupts, say)
            interrupts.deaf = False
            if interrupts.caught:
                raise KeyboardInterrupt
            cameras.update(open_cameras(robot, bundle.manifest.cameras, slots))
            known_cameras = calibrations(robot, slots)
            refuse_moved(robot, cameras, say)
            for name, trained in bundle.manifest.cameras.items():
                _compare_places(name, known_cameras[name], Camera.from_json(trained), say)
            driver = Policy(
                bundle, task, cameras, known_cameras, slots, robot.fast_hz, robot.slow_hz, policy, inject=inject,
                compensate=compensate, log=log if record is None else record / LOG,
                facts={
                    "harmowam": __version__, "robot": robot.name, "robot_file": robot.path.read_text(), "seconds": seconds,
                    "seed": seed, "faults": list(faults),
                },
            )  # fmt: skip
            driver.warm_up()
            session.wait_for_state()
            say(f"task: {task}")
            interrupts.stop = driver.stop
            _drive(driver, session, robot, seconds, stop_at_success, report)
            memory = resident_mb([os.getpid(), session.keeper.pid, *children(session.keeper.pid)])
            say("lowering the arm")
            last = session.lower()
            session.interrupted, session.held = bool(interrupts.caught), driver.why_held()
            session.close()
            missed = last.missed_ticks if last is not None else 0
            report.update(motor_missed_ticks=missed, motor_exit_code=session.keeper.returncode, rss_mb=memory)
            return LiveRun(driver, report)
    except Exception as e:
        report["error"] = str(e) or type(e).__name__
        raise
    finally:
        if driver is not None and session is not None and session.armed:
            ending = session.close()
            report.update(task=task, policy=policy, interrupted=bool(interrupts.caught))
            report.update(_facts(driver, robot, bundle, began + simulation_s))
            report.update(exit_code=int(ending.code), ending=ending.said)
            if record is not None:
                keep(driver, record, report)


def _drive(
    driver: Policy, session: ArmSession, robot: Robot, seconds: float, stop_at_success: bool, report: dict[str, Any]
) -> None:  # fmt: skip
    """Arm, and run `driver`; what must be looked at when it ends, however it ends, goes into `report`."""
    ticks = processor_ticks()
    until = None
    if stop_at_success and robot.simulated:

        def until() -> bool:
            return bool(server.judged(session.slots, 0)["success_at_end"])

    state_slot = session.wait_for_state()
    session.armed = True  # from here on it may be
    try:
        driver.arm(state_slot)
        driver.run(seconds, until)
    finally:
        report.update(_seen(driver, robot, session.slots, ticks))


def _close(things: Iterable[CameraSource | Policy]) -> None:
    for thing in things:
        thing.close()


def _put_down(session: ArmSession, interrupts: Interrupts, say: Callable[[str], None]) -> None:
    """Nothing may keep an arm from being lowered any more; `session` does that next, unless it has been done."""
    interrupts.deaf = True
    if session.armed and not session.closed:
        say("lowering the arm")


@contextlib.contextmanager
def _simulated(
    robot: Robot, slots: Path, seed: int, task: str | None, faults: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """What the simulator says of itself: its port and the instruction of the task that it has set up."""
    fps = max(c.fps for c in robot.cameras.values())
    simulator, info = server.start(slots, seed, task, fps, faults=faults, terminal=False)
    try:
        yield info
    finally:
        simulator.terminate()
        try:
            simulator.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            simulator.kill()
            simulator.communicate()


def _seen(driver: Policy, robot: Robot, slots: Path, ticks: np.ndarray) -> dict[str, Any]:
    """What must be looked at when the loop ends, before the arm is lowered. `ticks`: `processor_ticks` at the beginning."""
    judged = server.judged(slots, driver.counts.began_ns) if robot.simulated else {}
    return {"processors": processor_shares(ticks, processor_ticks()), **judged}


def _facts(driver: Policy, robot: Robot, bundle: Bundle, from_s: float) -> dict[str, Any]:
    """What a run was and how its loops kept time, however it ended. `from_s`: what the first command's time is counted from."""
    counts, backend = driver.counts, default_backend()
    first_ns = counts.first_command_ns
    return dict(
        timing_report(driver, robot.arm.motor_hz),
        robot=robot.name,
        bundle=bundle.manifest.name,
        engine={"cpu": "onnxruntime", "cuda": "onnxruntime (cuda)"}.get(backend, backend),
        preprocess="gpu" if on_gpu() else "cpu",
        quantization=bundle.manifest.quantization.get("format", "fp32"),
        real_time=driver.granted,
        time_to_first_command_s=round(first_ns * 1e-9 - from_s, 3) if first_ns else None,
        motor_shift_ms=counts.motor_shift_ns / 1e6,
        motor_drift_ms=round((counts.motor_ns - counts.motor_ticks * round(1e9 / robot.arm.motor_hz)) / 1e6, 3),
    )


def make_folder(folder: Path, option: str) -> None:
    """Raises RunError where nothing could be written: before the arm moves, not after. `option` named the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        wrong = "is a file" if isinstance(e, FileExistsError) else f"cannot be made ({e.strerror})"
        raise RunError(f"{folder} {wrong}: name a folder with {option}.") from e
    if not os.access(folder, os.W_OK):
        raise RunError(f"{folder} cannot be written: name a folder with {option}.")


def _compare_places(name: str, here: Camera, trained: Camera, say: Callable[[str], None]) -> None:
    """Say what re-projection to the training camera cannot put right."""
    if (lean := parallax(here, trained)) > 0.001:
        say(
            f"camera '{name}' stands elsewhere than in training: 5 cm above the table it shows things {1000 * lean:.0f} mm off"
        )
    away, turned = moved_mount(here, trained)
    if away > 0.003 or turned > math.radians(2):
        say(
            f"camera '{name}' sits elsewhere on the tool than in training: {1000 * away:.0f} mm and {math.degrees(turned):.0f} "
            "degrees off, which no re-projection puts right: mount it as it was, or train with this one"
        )


def keep(driver: Policy, record: Path, report: dict[str, Any]) -> None:
    """Write what belongs beside the log; raises RunError where that fails, unless another error is on its way out."""
    assert driver.log is not None
    try:
        keep_beside(driver.log, record, report)
    except OSError as e:
        lost = (
            f"the recording could not be written to {record} ({e.strerror}): make room there, or name another folder."
        )
        if "error" not in report:
            raise RunError(lost) from e
        tell(lost, "error: ")
