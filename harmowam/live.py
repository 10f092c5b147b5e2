"""A live run: starts the simulator (for a simulated robot), guard and motor process, cameras and policy; ends them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calibration.camera import Camera, moved_mount, parallax
from common.run_folder import run_folder
from common.timing import MOTOR_PRIORITY
from firmware_bridge.motion.motor import tell
from firmware_bridge.motion.session import ArmSession, Interrupts
from harmowam import __version__
from harmowam.calibration_rig import refuse_moved
from harmowam.folders import make_folder
from harmowam.processes import children, resident_mb, warm_up
from runtime.bundle import Bundle
from runtime.cameras.process import CameraProcess, checked
from runtime.cameras.sources import CameraSource, calibrations, open_camera
from runtime.compute import Chosen, choose, on_cores
from runtime.loop.errors import RunError
from runtime.loop.timing import timing_report
from runtime.loop.two_rate import Driver
from runtime.observe.episode import keep as keep_beside
from runtime.observe.episode import keep_motor_log
from runtime.observe.profile import processor_shares, processor_ticks
from runtime.policies import mode_of
from runtime.robot import Robot
from sim import server, tasks, trace
from sim.overview import SCENE
from sim.tasks import REST_S

Say = Callable[[str], None]


@dataclass(frozen=True)
class LiveRun:
    """The result of a run."""

    driver: Driver
    bundle: Bundle
    report: dict[str, Any]


@dataclass
class _Run:
    """The parts of a run, set as they are created. `from_s`: start of the time to the first command (monotonic, s)."""

    robot: Robot
    bundle: Bundle
    mode: str
    compute: Chosen
    task: str | None
    record: Path | None
    from_s: float
    report: dict[str, Any] = field(default_factory=dict)
    interrupts: Interrupts = field(default_factory=Interrupts)
    reading: CameraProcess | None = None
    cameras: dict[str, CameraSource] = field(default_factory=dict)
    session: ArmSession | None = None
    driver: Driver | None = None


def live(
    bundle_path: Path,
    robot: Robot,
    task: str | None,
    seconds: float,
    *,
    port: str | None = None,
    seed: int = 0,
    policy: str | None = None,
    record: Path | None = None,
    stop_at_success: bool = False,
    say: Say = lambda line: None,
    began_s: float | None = None,
    faults: tuple[str, ...] = (),
    inject: Mapping[str, float] | None = None,
    compensate: bool = True,
    log: Path | None = None,
    then: tuple[str, ...] = (),
    to_the_end: bool = False,
) -> LiveRun:
    """Run the two-rate loop on `robot` for `seconds`, or (unless `to_the_end`) until the policy says that it is done
    with `task` and with those of `then` after it; then the arm is lowered and released, also after an exception.

    `record`: folder for the motor process's log, and the run's config and report (how it ended as `error` and
    `interrupted`, the simulator's verdict, timing). `log`: file of the log. `policy`: mode of the bundle's
    policy (None: its default). `stop_at_success`: in simulation, end a policy's run that never says done. `faults`:
    faults of the virtual servo bus, NAME@SECONDS each. `began_s`: start of the time to the first command (monotonic, s;
    default: now).

    Raises BundleError, SignatureError, PolicyError, ComputeError, RobotError, CameraError, CalibrationError, ArmError
    or RunError, each with one sentence and a next step.
    """
    began = time.monotonic() if began_s is None else began_s
    _check_arguments(robot, seconds, port, record)
    bundle = Bundle.load(bundle_path, robot.trust)
    robot = dataclasses.replace(robot, arm=bundle.check_arm(robot.arm, robot.path))
    run = _Run(robot, bundle, mode_of(bundle, policy), choose(bundle, robot.compute), task, record, began)
    _refuse_task(run, then)
    if run.compute.note:
        say(run.compute.note)
    facts = _started_with(robot, seconds, seed, faults, port) | {"task_drawn": task is None}
    how = {"inject": inject, "compensate": compensate, "log": log, "then": then, "facts": facts}
    how["to_the_end"] = to_the_end
    with _reported(run), contextlib.ExitStack() as stack:
        slots = stack.enter_context(run_folder())
        stack.callback(_keep_motor_log, run, slots)
        stack.enter_context(run.interrupts)
        if robot.simulated:
            say("starting the simulated robot")
            states = record / SCENE if record is not None and log is not None else None  # for the film of a log
            port = stack.enter_context(_simulated(run, slots, seed, faults, states))
        run.reading = CameraProcess(robot, checked(robot, bundle.manifest.cameras), slots)
        stack.enter_context(_closed_when_lowered(run))
        session = stack.enter_context(_guarded(run, port or robot.port, slots, say))
        stack.enter_context(on_cores(robot.compute.cores))
        driver = _opened(run, slots, say, how)
        run.interrupts.stop = driver.stop
        _drive(run, driver, session, seconds, stop_at_success)
        _lower(run, driver, session, run.reading.pids, say)
        return LiveRun(driver, run.bundle, run.report)


def _started_with(robot: Robot, seconds: float, seed: int, faults: tuple[str, ...], port: str | None) -> dict[str, Any]:
    """Versions and arguments of the run, for its log."""
    return {
        "harmowam": __version__,
        "robot": robot.name,
        "robot_file": robot.path.read_text(),
        "robot_path": str(robot.path),
        "port": port,
        "seconds": seconds,
        "seed": seed,
        "faults": list(faults),
    }


def _check_arguments(robot: Robot, seconds: float, port: str | None, record: Path | None) -> None:
    """Raises RunError for arguments that contradict each other; makes the folder `record`."""
    if not 0 < seconds < float("inf"):
        raise RunError(f"a run of {seconds} s makes no sense: give --seconds a positive number.")
    if robot.simulated and port is not None:
        raise RunError(
            "the simulated robot brings its own bus: to drive an arm, write its robot file with `harmowam setup` and "
            "name it with --robot."
        )
    if record is not None:
        make_folder(record, "--record")


def _refuse_task(run: _Run, then: tuple[str, ...]) -> None:
    """Raises BundleError for a task that the bundle does not know, and RunError where a real robot has no task, or a
    task would follow one of which the policy never says that it is done."""
    if then and run.bundle.manifest.gate.done is None:
        raise RunError(f"{run.bundle.path} never says that a task is done, so nothing follows: leave --then out.")
    asked = (*((run.task,) if run.task is not None else ()), *then)
    for task in asked:
        run.bundle.task(task)
    if run.task is None and not run.robot.simulated:
        known = ", ".join(f"'{t}'" for t in run.bundle.manifest.tasks)
        raise RunError(f"no task was given: name one with --task ({known}).")
    simulated = (*tasks.INSTRUCTIONS, *trace.INSTRUCTIONS)
    unknown = [t for t in asked if t not in simulated]
    if run.robot.simulated and unknown:
        known = ", ".join(f"'{t}'" for t in simulated)
        raise RunError(f"the simulated robot does not know the task '{unknown[0]}': name one of its own ({known}).")


@contextlib.contextmanager
def _reported(run: _Run) -> Iterator[None]:
    """Context that completes the report, also after an exception, and writes it once the arm is released."""
    try:
        yield
    except Exception as e:
        run.report["error"] = str(e) or type(e).__name__
        raise
    finally:
        if run.driver is not None and run.session is not None and run.session.armed:
            ending = run.session.close()
            run.report.update(task=run.task, policy=run.mode, interrupted=bool(run.interrupts.caught))
            run.report.update(_facts(run, run.driver))
            run.report.update(exit_code=int(ending.code), ending=ending.said)
            if run.record is not None:
                keep(run.driver, run.record, run.report)


@contextlib.contextmanager
def _closed_when_lowered(run: _Run) -> Iterator[None]:
    """Context that closes cameras and driver after the arm is released. Enter it before `_guarded`."""
    try:
        yield
    finally:
        for camera in run.cameras.values():
            camera.close()
        if run.reading is not None:
            run.reading.close()
        if run.driver is not None:
            run.driver.close()


@contextlib.contextmanager
def _guarded(run: _Run, port: str, slots: Path, say: Say) -> Iterator[ArmSession]:
    """Guard and motor process as a context; signals are ignored while it ends, so that none stops the lowering."""
    run.interrupts.ignored = True  # an interrupt inside ArmSession() would leave a guard that runs without an owner
    with ArmSession(port, run.robot.arm, slots, MOTOR_PRIORITY) as session:
        run.session = session
        try:
            run.interrupts.ignored = False
            if run.interrupts.caught:
                raise KeyboardInterrupt
            yield session
        finally:
            run.interrupts.ignored = True
            if session.armed and not session.closed:
                say("lowering the arm")


def _opened(run: _Run, slots: Path, say: Say, how: dict[str, Any]) -> Driver:
    """Open the cameras, check that they have not moved, and warm up the driver. Raises as `live` does."""
    robot, trained = run.robot, run.bundle.manifest.cameras
    assert run.task is not None and run.session is not None and run.reading is not None
    run.reading.wait()
    for name in trained:
        run.cameras[name] = open_camera(robot.cameras[name], slots)
    known = calibrations(robot, slots)
    refuse_moved(robot, run.cameras, say)
    for name in trained:
        _warn_moved_since_training(name, known[name], Camera.from_json(trained[name]), say)
    run.driver = Driver(
        run.bundle,
        run.task,
        run.cameras,
        known,
        slots,
        robot.fast_hz,
        robot.slow_hz,
        run.mode,
        compute=run.compute,
        ends=(robot.arm.lower, robot.arm.upper),
        **how,
    )
    warm_up(run.driver.warm_up)
    run.session.wait_for_state()
    say(f"task: {run.task}")
    return run.driver


def true_for(condition: Callable[[], bool], seconds: float) -> Callable[[], bool]:
    """A function that returns whether `condition` has been true in every call for `seconds`: a released object may be
    in place for a moment and then fall."""
    since: list[float] = []

    def lasts() -> bool:
        if not condition():
            since.clear()
        elif not since:
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= seconds

    return lasts


def _drive(run: _Run, driver: Driver, session: ArmSession, seconds: float, stop_at_success: bool) -> None:
    """Arm and run `driver`; afterwards, also after an exception, add to the report what is known only at the end."""
    ticks, clocks = processor_ticks(), server.clocks(session.slots) if run.robot.simulated else None
    until: Callable[[], bool] | None = None
    if stop_at_success and run.robot.simulated and driver.slow.finish is None:
        until = true_for(lambda: bool(server.judged(session.slots, 0)["success_at_end"]), REST_S)

    state_slot = session.wait_for_state()
    session.armed = True  # the arm may be energised from here on
    try:
        driver.enable_torque(state_slot)
        driver.run(seconds, until)
    finally:
        run.report.update(_verdict_and_load(driver, session.slots, ticks, clocks))


def _lower(run: _Run, driver: Driver, session: ArmSession, cameras: list[int], say: Say) -> None:
    """Lower and release the arm; add the motor process's exit code, missed ticks and memory use (MB) to the report."""
    say("interrupted: lowering the arm" if run.interrupts.caught else "lowering the arm")
    memory = resident_mb([os.getpid(), session.keeper.pid, *children(session.keeper.pid), *cameras])
    last = session.lower_arm()
    session.interrupted, session.held = bool(run.interrupts.caught), driver.why_held()
    session.close()
    missed = last.missed_ticks if last is not None else 0
    run.report.update(motor_missed_ticks=missed, motor_exit_code=session.keeper.returncode, rss_mb=memory)


@contextlib.contextmanager
def _simulated(run: _Run, slots: Path, seed: int, faults: tuple[str, ...], states: Path | None) -> Iterator[str]:
    """Run the simulator as a context that gives its port. Its start is left out of the time to the first command. It
    draws the task where none was given, and writes the state of every picture to the file `states`."""
    fps = max(c.fps for c in run.robot.cameras.values())
    started = time.monotonic()
    how: dict[str, Any] = {"robot": str(run.robot.path), "states": states}
    simulator, info = server.start(slots, seed, run.task, fps, faults=faults, terminal=False, **how)
    run.from_s += time.monotonic() - started
    run.task = info["instruction"]
    try:
        yield info["port"]
    finally:
        simulator.terminate()
        try:
            simulator.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            simulator.kill()
            simulator.communicate()


def _verdict_and_load(driver: Driver, slots: Path, ticks: np.ndarray, clocks: server.Clocks | None) -> dict[str, Any]:
    """The simulator's verdict and time, and the processor load; to be read when the loop ends, before the arm is
    lowered.

    `ticks`, `clocks`: `processor_ticks` and the simulator's clocks (None: a real arm) at the start.
    """
    load = {"processors": processor_shares(ticks, processor_ticks())}
    if clocks is None:
        return load
    physics = server.passed(clocks, server.clocks(slots))
    return {**load, "physics": physics, **server.judged(slots, driver.counts.began_ns)}


def _facts(run: _Run, driver: Driver) -> dict[str, Any]:
    """Robot, bundle, compute and timing of the run, for its report."""
    counts, motor_hz = driver.counts, run.robot.arm.motor_hz
    first_ns = counts.first_command_ns
    facts = dict(
        timing_report(driver, motor_hz),
        robot=run.robot.name,
        bundle=run.bundle.manifest.name,
        kind=driver.policy.kind,
        **driver.compute_report,
        quantization=run.bundle.manifest.quantization.get("format", "fp32"),
        real_time=driver.granted,
        time_to_first_command_s=round(first_ns * 1e-9 - run.from_s, 3) if first_ns else None,
        said_done=driver.slow.said_done if driver.slow.finish is not None else None,
        motor_shift_ms=counts.motor_shift_ns / 1e6,
        motor_drift_ms=round((counts.motor_ns - counts.motor_ticks * round(1e9 / motor_hz)) / 1e6, 3),
    )
    return facts | ({"cores": list(run.robot.compute.cores)} if run.robot.compute.cores else {})


def _warn_moved_since_training(name: str, here: Camera, trained: Camera, say: Callable[[str], None]) -> None:
    """Tell the user about differences of the camera pose that re-projection to the training camera cannot correct."""
    if (lean := parallax(here, trained)) > 0.001:
        say(
            f"camera '{name}' is not where it was in training: objects 5 cm above the table appear "
            f"{1000 * lean:.0f} mm off"
        )
    away, turned = moved_mount(here, trained)
    if away > 0.003 or turned > math.radians(2):
        say(
            f"camera '{name}' is not mounted on the tool as in training: {1000 * away:.0f} mm and "
            f"{math.degrees(turned):.0f} degrees off, which re-projection cannot correct: mount it as it was, or train "
            "with this mount"
        )


def _keep_motor_log(run: _Run, slots: Path) -> None:
    """Copy the motor process's log to the recording, if the arm was armed; the folder of the slots is deleted after the
    run."""
    if run.record is None or run.session is None or not run.session.armed:
        return
    try:
        keep_motor_log(slots, run.record)
    except OSError as e:
        lost = f"the motor process's log could not be written to {run.record} ({e.strerror}): make room there."
        tell(lost, "error: ")


def keep(driver: Driver, record: Path, report: dict[str, Any]) -> None:
    """Write the report and the run's config beside the log. Raises RunError when that fails; after a run that ended
    with an error it only tells the user."""
    try:
        keep_beside(record, report, driver.meta, driver.record.log)
    except OSError as e:
        lost = (
            f"the recording could not be written to {record} ({e.strerror}): make room there, or name another folder."
        )
        if "error" not in report:
            raise RunError(lost) from e
        tell(lost, "error: ")
