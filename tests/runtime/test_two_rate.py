"""The two-rate loop on the wall clock, with real engines, slots, guard and motor process, over virtual servos."""

import dataclasses
import itertools
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from mcap.decoder import DecoderFactory as McapDecoderFactory
from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory

from firmware_bridge.arms.so101 import FAMILY as so101
from firmware_bridge.motion.endings import Exit
from firmware_bridge.motion.messages import Expert, JointState, SafetyState
from firmware_bridge.motion.session import ArmSession
from runtime.bundle import Bundle
from runtime.cameras.sources import calibrations, open_camera
from runtime.loop.errors import RunError
from runtime.loop.health import Health, HealthLimits
from runtime.loop.timing import timing_report
from runtime.loop.two_rate import Driver
from runtime.observe.episode import load_episode
from runtime.observe.log import LogWriter
from runtime.robot import load_robot
from tests.rig import Bench, undo_real_time
from tests.tiny import FRONT, TASK, tiny_bundle

pytestmark = pytest.mark.wall_clock


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp("tiny")))


class Run(Bench):
    """A bench whose guard runs and whose policy is armed."""

    def __init__(self, folder, bundle):
        super().__init__(folder)
        self.robot = load_robot(str(self.robot_file))
        self.session = ArmSession(self.robot.port, self.robot.arm, folder)
        self.keeper = self.session.keeper
        eyes = {name: open_camera(self.robot.cameras[name], folder) for name in bundle.manifest.cameras}
        known = calibrations(self.robot, folder)
        self.driver = Driver(
            bundle, TASK, eyes, known, folder, self.robot.fast_hz, self.robot.slow_hz, log=folder / "run.mcap"
        )
        self.driver.warm_up()
        self.driver.enable_torque(self.session.wait_for_state())

    def close(self):
        self.session.lower_arm()
        super().close()


@pytest.fixture
def run(tmp_path, bundle):
    r = Run(tmp_path, bundle)
    yield r
    r.close()
    undo_real_time()


def test_both_loops_drive_the_arm_and_leave_it_at_rest_without_torque(run, tmp_path):
    counts = run.driver.run(1.5)
    assert counts.slow >= 3 and counts.new_frames > 30 and counts.first_command_ns > counts.began_ns
    assert run.torque() == [1] * 6
    last = run.session.lower_arm()
    assert run.keeper.wait(5) == 0 and run.torque() == [0] * 6
    assert np.allclose(last.q_rad[:5], run.robot.arm.rest[:5], atol=0.1)
    report = timing_report(run.driver, run.robot.arm.motor_hz)
    assert {"fast_hz", "repeat_hz", "slow_hz", "ticks", "deadline_misses", "prior_age_ms", "stages"} <= set(report)
    assert report["observation_to_wire_ms"]["p50"] > 0 and report["stages"]["fast.engine"]["budget_ms"] == 20
    assert set(report["stages"]) > {"slow.world_model", "slow.predictive", "fast.preprocess", "fast.slot"}
    episode = load_episode(tmp_path / "run.mcap")
    assert len(episode.t_ns) == counts.new_frames and len(episode.futures) == counts.slow and not episode.gap
    assert set(episode.expert) == {Expert.NONE, Expert.REACTIVE} and (episode.wire_ms > 0).all()
    elapsed_s = np.diff(episode.t_ns)[:, None] * 1e-9  # a late tick commands where the plan is by then
    assert np.nanmax(np.abs(np.diff(episode.command, axis=0)) / elapsed_s) < 10  # rad/s: no jumps


class JsonDecoderFactory(McapDecoderFactory):
    def decoder_for(self, encoding, schema):
        return json.loads if (encoding, schema.encoding) == ("json", "jsonschema") else None


def decoded(path, topic):
    """Messages of a log by their times, read and decoded by the `mcap` packages, which know nothing of this program."""
    with open(path, "rb") as f:
        reader = make_reader(f, decoder_factories=[DecoderFactory(), JsonDecoderFactory()], validate_crcs=True)
        return {
            m.message.log_time: (m.schema.name, m.decoded_message) for m in reader.iter_decoded_messages(topics=[topic])
        }


def test_other_programs_read_pictures_places_joints_commands_and_health_as_the_run_saw_them(run, tmp_path):
    pictures: dict[int, np.ndarray] = {}
    states: list[JointState] = []
    frames, state = run.driver.eyes.frames, run.driver.record.log.state

    def look():
        got = frames()
        pictures.update({f.t_capture_ns: f.image for name, f in got.items() if name == "wrist"})
        return got

    def note(s):
        states.append(s)
        state(s)

    run.driver.eyes.frames = look
    run.driver.record.log.state = note
    run.driver.run(1.0)
    log = tmp_path / "run.mcap"
    seen = decoded(log, "camera/wrist")
    assert seen.keys() == pictures.keys() and len(seen) > 5
    for t_ns, (name, image) in seen.items():
        assert (name, image.encoding, image.frame_id) == ("foxglove.RawImage", "rgb8", "wrist_camera")
        assert image.timestamp.ToNanoseconds() == t_ns and image.step == 3 * image.width
        assert np.array_equal(np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3), pictures[t_ns])
    names = list(run.robot.arm.joints)
    joints, places = decoded(log, "joints"), decoded(log, "transform/tool")
    assert joints.keys() == {s.t_ns for s in states} > places.keys() and len(places) > 5
    for s in states:
        name, shown = joints[s.t_ns]
        assert name == "harmowam.Joints" and list(shown["measured_rad"]) == names
        assert list(shown["measured_rad"].values()) == pytest.approx(s.q_rad.tolist(), abs=1e-6)
        assert list(shown["goal_rad"].values()) == pytest.approx(s.goal_rad.tolist(), abs=1e-6)
    for s in [s for s in states if s.t_ns in places]:
        name, place = places[s.t_ns]
        assert (name, place["parent_frame_id"], place["child_frame_id"]) == ("foxglove.FrameTransform", "base", "tool")
        assert turned(place["rotation"]) == pytest.approx(so101.tool(s.q_rad)[:3, :3], abs=1e-6)
        assert list(place["translation"].values()) == pytest.approx(so101.tool(s.q_rad)[:3, 3], abs=1e-9)
    ((name, front),) = decoded(log, "transform/front").values()
    assert (name, front["parent_frame_id"], front["child_frame_id"]) == (
        "foxglove.FrameTransform",
        "base",
        "front_camera",
    )
    assert turned(front["rotation"]) == pytest.approx(np.array(FRONT["T_base_from_cam"])[:3, :3], abs=1e-4)
    commands = [m for name, m in decoded(log, "command").values() if name == "harmowam.Command"]
    assert {m["expert"] for m in commands} == {"REACTIVE"} and list(commands[0]["q_rad"]) == names
    assert next(m["state"] for _, m in decoded(log, "health").values()) == "RUNNING"
    said = [m["message"] for name, m in decoded(log, "log").values() if name == "foxglove.Log"]
    assert "RUNNING" in said and "ACTIVE" in said


def turned(q):
    """Rotation of a quaternion, by its textbook formula."""
    x, y, z, w = (q[k] for k in "xyzw")
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def test_the_first_ticks_already_take_fresh_pictures(run):
    """The loop begins half way between two pictures, which come every 20 ms: one that waited for its tick would be 10
    ms older."""
    eye = next(iter(run.driver.eyes.cameras.values()))
    seen = eye.frame_number
    while eye.frame_number == seen:
        time.sleep(0.0005)
    time.sleep(0.008)
    run.driver.run(0.4)
    ages = run.driver.record.fast_trace.durations_ms()["observation.age"]
    assert np.median(ages[:8]) < 4, ages[:8]


def test_a_camera_that_stops_ends_the_run(run):
    counts = run.driver.counts
    run.driver.health.limits = HealthLimits(camera_lost_s=1.0)

    def pull_the_plug():
        if counts.new_frames > 20:
            run.cameras.stop.set()
        return False

    began = time.monotonic()
    with pytest.raises(RunError, match="camera 'front' stopped giving frames: check its cable"):
        run.driver.run(20, pull_the_plug)
    assert time.monotonic() - began < 5 and counts.repeats > 10
    assert run.driver.link.state().safety not in (SafetyState.SAFE_STOP, SafetyState.FAULT)
    assert run.driver.health.state == Health.STOPPED
    assert run.torque() == [1] * 6


def states(run):
    return [c.state for c in run.driver.health.history]


def held_once_and_ran_again(run):
    """A machine that is late may degrade the loop any time: that is not what is asked. A hold may have one reason after
    another."""
    seen = [s for s, _ in itertools.groupby(s for s in states(run) if s != Health.DEGRADED)]
    return seen.count(Health.HOLDING) == 1 and seen[-2:] == [Health.HOLDING, Health.RUNNING]


def test_a_camera_that_is_plugged_in_again_lets_the_run_go_on_and_the_arm_stays_where_it_was(run):
    counts, held = run.driver.counts, []

    def unplug_for_two_seconds():
        t = (time.monotonic_ns() - counts.began_ns) * 1e-9
        run.cameras.unplugged = 1.0 < t < 3.0
        if 1.8 < t < 3.0:
            held.append(run.driver.link.state().q_rad)
        return False

    run.driver.run(4.0, unplug_for_two_seconds)
    assert held_once_and_ran_again(run)
    assert np.ptp(held, axis=0).max() < 0.01
    assert counts.new_frames > 60  # it drives again


def test_outputs_that_are_not_finite_hold_the_arm_and_are_forgotten(run):
    counts, engine = run.driver.counts, run.driver.policy.fast.engine
    whole = engine.run

    def spoiled(feeds):
        out = whole(feeds)
        if 30 < counts.new_frames < 45:
            out["reach"] = np.full_like(out["reach"], np.nan)
        return out

    engine.run = spoiled
    safety = []
    run.driver.run(2.0, lambda: safety.append(run.driver.link.state().safety))
    assert held_once_and_ran_again(run) and counts.faults_seen == 14
    assert "not finite" in next(c for c in run.driver.health.history if c.state == Health.HOLDING).reasons[0]
    assert SafetyState.HOLD in safety[5:] and safety[-1] == SafetyState.ACTIVE
    assert 0 < timing_report(run.driver, 100.0)["held_s"] < 2.0


def test_a_board_that_is_too_hot_moves_nothing_and_goes_on_from_where_the_arm_is(run, monkeypatch):
    heat, driver = [120.0], run.driver
    monkeypatch.setattr("runtime.loop.slow.board_temperature", lambda: heat[0])
    driver.slow.temperature = heat[0]
    sent, send = [], driver.link.send

    def noting(command, *rest):
        sent.append((driver.slow.temperature, np.abs(command.q_rad - driver.link.state().q_rad)[:5].max()))
        send(command, *rest)

    monkeypatch.setattr(driver.link, "send", noting)

    def cool():
        if time.monotonic_ns() - driver.counts.began_ns > 1.5e9:
            heat[0] = 20.0
        return False

    driver.run(4.0, cool)
    assert held_once_and_ran_again(run) and "the board is at 120 C" in str(driver.health.history)
    assert len(sent) > 30 and {t for t, _ in sent} == {20.0}  # nothing went out meanwhile
    assert sent[0][1] < 0.1  # rad: and it begins where the arm is


def test_a_slow_engine_whose_numbers_are_not_finite_stops_the_targets_at_once(run):
    driver, step = run.driver, run.driver.policy.slow.step

    def spoiled(now_ns, obs):
        made = step(now_ns, obs)
        t = (time.monotonic_ns() - driver.counts.began_ns) * 1e-9
        return dataclasses.replace(made, chunk=np.full_like(made.chunk, np.nan)) if 1.0 < t < 2.0 else made

    driver.policy.slow.step = spoiled
    sent, send = [], driver.link.send

    def noting(*arguments):
        sent.append(driver.slow.fault)
        send(*arguments)

    driver.link.send = noting
    driver.run(3.0)
    assert held_once_and_ran_again(run) and len(sent) > 50 and not any(sent)


def test_the_camera_that_stopped_is_the_one_that_is_named(run):
    driver = run.driver
    driver.health.limits = HealthLimits(camera_lost_s=1.0)
    wrist = driver.eyes.cameras["wrist"]

    class Stopped:
        """The wrist camera as it was when it stopped."""

        frame_number, noisy = wrist.frame_number + 40, False

        def wait(self, frame_number, until_ns):
            time.sleep(max(until_ns - time.monotonic_ns(), 0) * 1e-9)
            return False

        def newest(self):
            return wrist.newest()

    def pull():
        if driver.counts.new_frames > 20 and driver.eyes.cameras["wrist"] is wrist:
            Stopped.frame_number = driver.eyes.seen["wrist"]
            driver.eyes.cameras["wrist"] = Stopped()
        return False

    with pytest.raises(RunError, match="camera 'wrist' stopped giving frames: check its cable"):
        driver.run(20, pull)


def test_a_slow_engine_that_hangs_degrades_then_holds_then_stops_the_run(run):
    run.driver.health.limits = HealthLimits(prior_late_s=0.3, prior_lost_s=0.6, engine_lost_s=0.5)
    step = run.driver.policy.slow.step

    def hang(now_ns, obs):
        if run.driver.counts.slow > 3:
            time.sleep(3.0)
        return step(now_ns, obs)

    run.driver.policy.slow.step = hang
    with pytest.raises(RunError, match="the slow engine is overdue"):
        run.driver.run(20)
    assert states(run)[-3:] == [Health.DEGRADED, Health.HOLDING, Health.STOPPED]


def test_a_full_disk_ends_the_recording_and_not_the_run(run, tmp_path):
    log = LogWriter(tmp_path / "full" / "run.mcap", {"task": TASK}, reserve_bytes=1 << 62)
    run.driver.record.log = log
    after: list[tuple[Health, SafetyState]] = []

    def look():
        if log.fault:
            after.append((run.driver.health.state, run.driver.link.state().safety))

    counts = run.driver.run(1.0, look)
    assert "recording stopped" in log.fault and counts.new_frames > 25
    assert (Health.DEGRADED, SafetyState.ACTIVE) in after[1:] and all(
        health != Health.RUNNING for health, _ in after[1:]
    )


def test_a_motor_process_that_dies_ends_the_run_and_the_guard_lets_the_arm_down(run):
    motor = int(Path(f"/proc/{run.keeper.pid}/task/{run.keeper.pid}/children").read_text().split()[0])

    asked = []

    def kill():
        asked.append(1)
        if len(asked) == 3:
            os.kill(motor, signal.SIGKILL)
        return False

    with pytest.raises(RunError, match="the motor process fell silent"):
        run.driver.run(20, kill)
    assert run.keeper.wait(8) == Exit.GUARD and run.torque() == [0] * 6


def test_a_servo_that_falls_silent_stops_the_run_with_its_name(run):
    def unplug():
        if run.driver.counts.new_frames > 20:
            run.servos.faults.inject("silent-servo", servo=3)
        return False

    with pytest.raises(RunError, match="elbow_flex does not answer"):
        run.driver.run(20, unplug)


def test_a_slow_loop_that_fails_ends_the_run(run):
    class Broken(Exception):
        pass

    def fail(now_ns, obs):
        raise Broken

    run.driver.policy.slow.step = fail
    with pytest.raises(Broken):
        run.driver.run(20)
    assert run.driver.counts.first_command_ns == 0  # without a plan nothing is commanded
