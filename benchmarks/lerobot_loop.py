"""LeRobot's own control loop on our simulated robot, with our engines as its policy.

    PYTHONPATH=. .venv-peers/bin/python -m benchmarks.lerobot_loop --seconds 60 --fps 50
    harmowam profile --seconds 60 --fps 50 --seed 3                                      # ours, in the same sitting

LeRobot's own parts run: `record_loop` (nothing is stored), `SOFollower`, its Feetech bus (scservo_sdk) over the
pseudo-terminal of `sim.server`, `predict_action` with torch. Its policy is our fast step with a Prior of our slow step
that was made before the loop begins; the time in the policy is subtracted. Its cameras are our files of frames behind
the two methods that its loop calls: no decoding and no conversion, which is in its favour.

What is against it on a small machine: the simulated hardware runs with real-time priority, as in our own runs, and
LeRobot's loop asks for none. With `--priority 10`, or with hardware of ordinary priority, its bus gives up ("There is
no status packet", no retry) within seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from common.clock import prefer
from runtime.bundle import Bundle
from runtime.cameras.frames import frames_path
from runtime.cameras.sources import CameraSource, calibrations
from runtime.contracts import Observation
from runtime.observe.trace import percentiles
from runtime.policies.harmowam import FastStep, SlowStep
from runtime.robot import CameraConfig, load_robot
from sim.tasks import ARM


class Timed:
    """When the newest tick did what, ns."""

    captured = taken = engine = 0


class Eye:
    """A camera as `SOFollower` calls it."""

    is_connected = True

    def __init__(self, config: CameraConfig, slots: Path, now: Timed):
        self.slot, self.now = CameraSource(config, frames_path(slots, config.name)), now

    def read_latest(self) -> np.ndarray:
        frame = self.slot.newest()
        assert frame is not None
        self.now.captured = min(self.now.captured, frame.t_capture_ns) if self.now.captured else frame.t_capture_ns
        self.now.taken = time.monotonic_ns()
        return frame.image


class Ours:
    """Our engines as a LeRobot policy: holds the arm where it is, whatever they say."""

    config = SimpleNamespace(device="cpu", use_amp=False)

    def __init__(self, fast: FastStep, prior: Any, now: Timed):
        self.fast, self.prior, self.now = fast, prior, now

    def reset(self) -> None:
        self.fast.reset()

    def select_action(self, batch: dict[str, Any]) -> Any:
        began = time.monotonic_ns()
        frames = {
            n: np.ascontiguousarray(
                (batch[f"observation.images.{n}"][0].numpy().transpose(1, 2, 0) * 255).astype(np.uint8)
            )
            for n in ("front", "wrist")
        }
        q = np.zeros(6, np.float32)
        prior = dataclasses.replace(self.prior, t_capture_ns=began)
        converted = time.monotonic_ns()  # floats back to bytes is our own need, not its loop's: taken off as well
        self.fast.step(converted, Observation(began, frames, q, q), prior)
        self.now.engine = time.monotonic_ns() - began
        return batch["observation.state"]


class Same:
    """LeRobot's processors around a policy, without a model's statistics."""

    def reset(self) -> None:
        pass

    def __call__(self, value: Any) -> Any:
        return value


@dataclasses.dataclass
class Ticks:
    """`starts`: when each tick began, ns. `rows`: for each tick, ns from capture to wire; from the frames' reading and
    from the beginning of the tick to the wire, both less the time in the policy."""

    starts: list[int] = dataclasses.field(default_factory=list)
    rows: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)


def follower(port: str, cameras: dict[str, Eye]) -> Any:
    """LeRobot's `SOFollower` with torque on, without its calibration dialogue."""
    from lerobot.motors import MotorCalibration
    from lerobot.robots.so_follower.config_so_follower import SOFollowerRobotConfig
    from lerobot.robots.so_follower.so_follower import SOFollower

    robot = SOFollower(SOFollowerRobotConfig(id="bench", port=port, cameras={}))
    robot.bus.calibration = {n: MotorCalibration(k + 1, 0, 0, 0, 4095) for k, n in enumerate(ARM.JOINTS)}
    robot.bus.connect(handshake=False)
    robot.bus.sync_write("Torque_Enable", dict.fromkeys(ARM.JOINTS, 1), normalize=False)
    robot.cameras = cameras
    return robot


def stamped(robot: Any, now: Timed) -> Ticks:
    """Stamp each tick of `robot` from now on, into what is returned."""
    ticks = Ticks()
    look, send = robot.get_observation, robot.send_action

    def get_observation() -> Any:
        ticks.starts.append(time.monotonic_ns())
        now.captured = 0
        return look()

    def send_action(action: Any) -> Any:
        sent = send(action)
        wire = time.monotonic_ns()
        ticks.rows.append((wire - now.captured, wire - now.taken - now.engine, wire - ticks.starts[-1] - now.engine))
        return sent

    robot.get_observation, robot.send_action = get_observation, send_action
    return ticks


def record(robot: Any, policy: Ours, fps: int, seconds: float, task: str) -> None:
    """LeRobot's `record_loop` with `policy`; its data set takes every frame and stores none."""
    from lerobot.processor import make_default_processors
    from lerobot.scripts.lerobot_record import record_loop

    names = [f"{j}.pos" for j in ARM.JOINTS]
    image = {"dtype": "image", "shape": (240, 320, 3), "names": ["height", "width", "channels"]}
    state = {"dtype": "float32", "shape": (6,), "names": names}
    features = {
        "observation.state": state,
        "action": state,
        "observation.images.front": image,
        "observation.images.wrist": image,
    }
    teleop, action, observation = make_default_processors()
    record_loop(
        robot,
        {"exit_early": False},
        fps,
        teleop,
        action,
        observation,
        dataset=SimpleNamespace(fps=fps, features=features, add_frame=lambda frame: None),
        policy=policy,
        preprocessor=Same(),
        postprocessor=Same(),
        control_time_s=seconds,
        single_task=task,
    )


def drive(args: argparse.Namespace, info: dict[str, Any], slots: Path) -> Ticks:
    """Drive the simulator that `info` describes; its cameras write into `slots`."""
    import torch

    now = Timed()
    described, bundle = load_robot("sim_so101"), Bundle.load(args.bundle)
    known = calibrations(described, slots)
    robot = follower(info["port"], {n: Eye(c, slots, now) for n, c in described.cameras.items()})
    fast = FastStep(bundle, known)
    q = np.zeros(6, np.float32)
    first = Observation(time.monotonic_ns(), {n: e.read_latest() for n, e in robot.cameras.items()}, q, q)
    prior = SlowStep(bundle, info["instruction"], known).step(first.t_capture_ns, first)
    torch.set_num_threads(args.threads)
    prefer(args.priority)
    ticks = stamped(robot, now)
    record(robot, Ours(fast, prior, now), args.fps, args.seconds, info["instruction"])
    return ticks


def found(ticks: Ticks, fps: int) -> dict[str, Any]:
    """The figures, without the first 20 ticks."""
    v = np.array(ticks.rows[20:]) / 1e6
    period = np.diff(ticks.starts[20:]) / 1e6
    drift = (ticks.starts[-1] - ticks.starts[20]) / 1e6 - (len(ticks.starts) - 21) * 1000 / fps
    return {
        "ticks": len(v),
        "hz": round(1000 / float(period.mean()), 3),
        "drift_ms": round(drift, 1),
        "period_error_ms": percentiles(np.abs(period - 1000 / fps)),
        "observation_to_wire_ms": percentiles(v[:, 0]),
        "overhead_ms": percentiles(v[:, 1]),
        "overhead_with_servo_read_ms": percentiles(v[:, 2]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--fps", type=int, default=50)
    parser.add_argument("--bundle", type=Path, default=Path("out/so101.bundle"))
    parser.add_argument("--python", default=".venv/bin/python", help="of the environment that has the simulator")
    parser.add_argument("--priority", type=int, default=0, help="SCHED_FIFO for its loop; it asks for none itself")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="harmowam-", dir="/dev/shm") as folder:
        command = [args.python, "-m", "sim.server", "--slots", folder, "--seed", "3", "--fps", str(args.fps)]
        simulator = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert simulator.stdout is not None
            ticks = drive(args, json.loads(simulator.stdout.readline()), Path(folder))
        finally:
            simulator.terminate()
            simulator.wait()
    result = found(ticks, args.fps)
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
