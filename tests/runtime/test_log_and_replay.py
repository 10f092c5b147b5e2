"""A recorded run gives the same actions again, bit for bit; what differs is found; a log that was cut short can be
read."""

import dataclasses
import json
import os
import resource
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from mcap.reader import make_reader
from mcap.writer import CompressionType, Writer

from calibration.camera import Camera
from common.clock import prefer
from common.timing import FAST_PRIORITY, LOG_PRIORITY, SIM_CAMERA_PRIORITY, SIM_SERVO_PRIORITY, SLOW_PRIORITY
from firmware_bridge.arms.so101 import FAMILY as so101
from firmware_bridge.motion.messages import Command, Expert, JointState
from harmowam.cli import main
from runtime.bundle import Bundle, BundleError, sha256
from runtime.cameras.frames import Frame
from runtime.contracts import Observation, Prior
from runtime.loop.health import Health
from runtime.observe.episode import load_episode
from runtime.observe.log import LogWriter
from runtime.observe.log_reader import read_log, read_meta
from runtime.observe.records import (
    CUT,
    DAMAGED,
    FrameRecord,
    LogError,
    PriorRecord,
    TickRecord,
    digest,
    packed_prior,
    prior_of,
)
from runtime.observe.replay import replay, run_meta
from runtime.observe.schemas import image_of
from runtime.policies import open_policy
from tests.rig import START
from tests.tiny import FRONT, INPUTS, TASK, WRIST, outputs, tiny_bundle, tiny_chunk_bundle, write_engine

MS = 1_000_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp("tiny"), gate=0.6))


def record(path, bundle, ticks=40, reset_at=25, dropped=0):
    """A run without a clock: pictures with noise, a Prior every six ticks."""
    cameras = {"front": Camera.from_json(FRONT), "wrist": Camera.from_json(WRIST)}
    policy = open_policy(bundle, TASK, cameras)
    slow, fast = policy.slow, policy.fast
    log = LogWriter(path, run_meta(bundle, TASK, policy.mode, cameras), reserve_bytes=0)
    rng, prior = np.random.default_rng(0), None
    for k in range(ticks):
        t = 1_000 * MS + k * 20 * MS
        frames = {n: rng.integers(0, 255, (96, 96, 3)).astype(np.uint8) for n in cameras}
        q = (np.array(START) + rng.normal(0, 0.01, 6)).astype(np.float32)
        obs = Observation(t, frames, q, np.zeros(6, np.float32), k)
        if k == reset_at:
            fast.reset()
        command, tick = fast.step(t + 5 * MS, obs, prior)
        targets = np.stack([tick.reactive_target, tick.predictive_target, tick.sent_target])
        number = -1 if prior is None else prior.number
        log.tick(
            t + 5 * MS,
            obs,
            {n: Frame(t + MS * (n == "wrist"), image, k + 1) for n, image in frames.items()},
            number,
            command,
            targets,
            reset=k == reset_at,
            sent=command is not None,
        )
        if k % 6 == 0:
            prior = slow.step(t, obs)
            log.prior(prior, obs, t)
        while len(log._waiting) > 100:  # a real run waits between ticks
            time.sleep(0.001)
    log.health(0, Health.RUNNING, [])
    log.close()
    assert log.dropped == dropped and not log.fault
    return path


@pytest.fixture(scope="module")
def log(bundle, tmp_path_factory):
    return record(tmp_path_factory.mktemp("log") / "run.mcap", bundle)


def test_a_log_holds_what_the_engines_got_and_gave(log, bundle):
    records = list(read_log(log))
    ticks = [r for r in records if isinstance(r, TickRecord)]
    assert read_meta(log)["task"] == TASK and len(ticks) == 40
    assert sum(isinstance(r, PriorRecord) for r in records) == 7
    frames = [r for r in records if isinstance(r, FrameRecord)]
    assert len(frames) == 80 and frames[0].image.shape == (96, 96, 3)
    apart = {f.t_capture_ns - 1_000 * MS for f in frames if f.seq == 1}
    assert apart == {0, MS}  # each camera's own time
    assert ticks[0].prior_number == -1 and ticks[0].command == b"" and ticks[30].sent and ticks[25].reset
    assert [r["state"] for r in records if isinstance(r, dict) and r.get("kind") == "health"] == ["RUNNING"]


def test_replay_is_identical_bit_for_bit(log):
    result = replay(log)
    assert result.identical and (result.steps, result.priors, result.gap) == (40, 7, "")


def test_a_run_of_joint_chunks_is_recorded_and_replayed_like_any(tmp_path, monkeypatch):
    """It predicts nothing and has no tokens; its plans are joint angles."""
    ramp = np.array(START) + np.outer(np.arange(1, 9) * 0.05, [0.4, -0.2, 0.2, 0.1, 0.3, 0.5])
    log = record(tmp_path / "run.mcap", Bundle.load(tiny_chunk_bundle(tmp_path, ramp)))
    records: list[Any] = list(read_log(log))
    priors = [r for r in records if isinstance(r, PriorRecord)]
    assert len(priors) == 7 and all(r.chunk == pytest.approx(ramp, abs=1e-6) for r in priors)
    episode = load_episode(log)
    assert not episode.futures and not episode.gap and {*episode.expert} == {Expert.NONE, Expert.PLAN}
    result = replay(log)
    assert result.identical and (result.steps, result.priors, result.gap) == (40, 7, "")
    at = next(i for i, r in enumerate(records) if isinstance(r, TickRecord) and r.number == 20)
    command = Command.unpack(records[at].command)
    other = dataclasses.replace(command, q_rad=command.q_rad + np.float32(0.01))
    records[at] = dataclasses.replace(records[at], command=other.pack())
    monkeypatch.setattr("runtime.observe.replay.read_log", lambda path: iter(records))
    assert (replay(log).steps, replay(log).identical) == (20, False)
    far, near = replay(log, within_deg=0.1), replay(log, within_deg=1.0)
    assert near.passed and not far.passed and near.largest is not None and near.largest.number == 20
    assert near.largest.degrees == pytest.approx(np.degrees(0.01), abs=1e-3) and near.differing == 1


def test_a_plan_is_as_wide_as_the_arm_has_joints():
    seven = np.arange(7, dtype=np.float32)
    chunk = np.arange(21, dtype=np.float32).reshape(3, 7)
    nothing = np.zeros(0, np.float32)
    made = Prior(5, 7, TASK, nothing, nothing, chunk, np.arange(3), 9, "joints")
    kept = prior_of(packed_prior(made, Observation(5, {}, seven, seven + 1, 4), 6))
    assert np.array_equal(kept.chunk, chunk) and np.array_equal(kept.qd_rad_s, seven + 1)
    assert (kept.number, kept.observation, kept.digest) == (9, 4, digest(made))


def test_a_prior_that_was_made_before_its_fast_step_was_written_is_replayed_too(log, monkeypatch):
    """A quick slow loop is done while the fast step that took the picture is still checking it."""
    records = list(read_log(log))
    for prior in [r for r in records if isinstance(r, PriorRecord)]:
        records.remove(prior)
        of = next(i for i, r in enumerate(records) if isinstance(r, TickRecord) and r.number == prior.observation)
        records.insert(of, prior)
    monkeypatch.setattr("runtime.observe.replay.read_log", lambda path: iter(records))
    result = replay(log)
    assert result.identical and (result.steps, result.priors, result.gap) == (40, 7, "")


def test_a_fast_step_that_found_no_room_ends_the_comparison_and_is_no_difference(bundle, tmp_path, monkeypatch):
    tick, calls = LogWriter.tick, []

    def crowded(self, *arguments, **more):
        calls.append(1)
        with monkeypatch.context() as full:
            if len(calls) == 7:
                full.setattr("runtime.observe.log.WAITING", 0)
            tick(self, *arguments, **more)

    monkeypatch.setattr(LogWriter, "tick", crowded)
    result = replay(record(tmp_path / "run.mcap", bundle, dropped=1))
    assert result.steps == 6 and result.difference is None and "before number 7 are missing" in result.gap


def test_a_fast_step_that_is_missing_ends_the_comparison_where_it_is_needed(log, monkeypatch):
    records = [r for r in read_log(log) if not (isinstance(r, TickRecord) and r.number == 12)]
    monkeypatch.setattr("runtime.observe.replay.read_log", lambda path: iter(records))
    result = replay(log)
    assert result.steps == 12 and result.difference is None and "before number 13" in result.gap


def test_a_prior_that_is_missing_ends_the_comparison_for_the_next_one_went_on_from_it(log, monkeypatch):
    records = list(read_log(log))
    at, third = [(i, r) for i, r in enumerate(records) if isinstance(r, PriorRecord)][2]
    records.insert(at + 1, dataclasses.replace(third, number=third.number + 2))
    monkeypatch.setattr("runtime.observe.replay.read_log", lambda path: iter(records))
    result = replay(log)
    assert result.difference is None and result.priors == 3
    assert f"before number {third.number + 2} are missing" in result.gap


def nudged(values):
    """The same numbers, the last of them by one bit more."""
    out = values.copy()
    out.flat[-1] = np.nextafter(out.flat[-1], np.float32(np.inf))
    return out


ALTERED = {
    "Prior's chunk": (PriorRecord, lambda r: {"chunk": nudged(r.chunk)}),
    "Prior's tokens or predicted future": (PriorRecord, lambda r: {"digest": bytes([r.digest[0] ^ 1]) + r.digest[1:]}),
    "command": (TickRecord, lambda r: {"command": r.command[:-1] + bytes([r.command[-1] ^ 1])}),
    "target": (TickRecord, lambda r: {"targets": nudged(r.targets)}),
}


@pytest.mark.parametrize("what", ALTERED)
def test_one_bit_of_anything_that_came_out_is_a_difference(log, monkeypatch, what):
    kind, change = ALTERED[what]
    records: list[Any] = list(read_log(log))
    at = [i for i, r in enumerate(records) if isinstance(r, kind)][4]
    records[at] = dataclasses.replace(records[at], **change(records[at]))
    monkeypatch.setattr("runtime.observe.replay.read_log", lambda path: iter(records))
    result = replay(log)
    assert result.difference is not None and not result.identical and not result.gap
    assert (result.difference.what, result.difference.number) == (what, records[at].number)
    done = (result.steps, result.priors)
    assert done == (
        sum(isinstance(r, TickRecord) for r in records[:at]),
        sum(isinstance(r, PriorRecord) for r in records[:at]),
    )


def test_a_picture_of_another_number_is_a_gap_and_not_compared(log, monkeypatch):
    """The fast step's own picture is missing, and the one before it lies there instead."""
    records = list(read_log(log))
    at = [i for i, r in enumerate(records) if isinstance(r, FrameRecord) and r.camera == "front"][5]
    del records[at]
    monkeypatch.setattr("runtime.observe.replay.read_log", lambda path: iter(records))
    result = replay(log)
    assert result.difference is None and result.steps == 5 and "before number 5 are missing" in result.gap


def test_a_log_without_a_fast_step_is_not_called_identical(log, monkeypatch):
    records = [r for r in read_log(log) if not isinstance(r, TickRecord)]
    monkeypatch.setattr("runtime.observe.replay.read_log", lambda path: iter(records))
    result = replay(log)
    assert (result.steps, result.difference, result.identical) == (0, None, False)
    said = CliRunner().invoke(main, ["replay", str(log)])
    assert said.exit_code == 1 and "identical" not in said.output


def test_the_first_difference_is_reported(log, bundle, tmp_path):
    other = tiny_bundle(tmp_path, gate=0.1)
    with pytest.raises(LogError, match=r"is not the bundle that .* was recorded with"):
        moved = tmp_path / "moved.mcap"
        shutil.copy(log, moved)
        swapped = shutil.copytree(bundle.path, tmp_path / "kept")
        shutil.rmtree(bundle.path)
        shutil.copytree(other, bundle.path)
        try:
            replay(moved)
        finally:
            shutil.rmtree(bundle.path)
            shutil.copytree(swapped, bundle.path)
    result = replay(log, other)
    assert not result.identical and result.difference.what == "command" and result.difference.number == 1
    assert result.steps == 1 and len(result.difference.recorded) == 6


def with_engine(path, name, inputs, said):
    """The bundle at `path` with another engine `name`."""
    write_engine(path / "onnx" / f"{name}.onnx", inputs, said)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"][f"onnx/{name}.onnx"] = sha256(path / "onnx" / f"{name}.onnx")
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def rounding_otherwise(folder, by):
    """The same bundle of another rounding: the reactive expert reaches further by `by` metres."""
    said = outputs(0.1)["fast"]
    further = {**said, "reach": said["reach"] + np.array([[by, 0, 0]], np.float32)}
    return with_engine(tiny_bundle(folder, gate=0.1), "fast", INPUTS["fast"], further)


def commands(log):
    return [Command.unpack(r.command).q_rad for r in read_log(log) if isinstance(r, TickRecord) and r.command]


def test_on_another_processor_the_commands_may_be_some_degrees_apart(tmp_path):
    """The whole log is compared, and what is said of the largest difference is true of the recorded command there."""
    log = record(tmp_path / "run.mcap", Bundle.load(tiny_bundle(tmp_path / "here", gate=0.1)))
    there = rounding_otherwise(tmp_path / "there", 1e-4)
    exact, near = replay(log, there), replay(log, there, within_deg=0.2)
    assert not exact.passed and exact.stopped and exact.steps < 5
    assert near.passed and not near.identical and not near.stopped and (near.steps, near.priors) == (40, 7)
    assert near.difference == exact.difference and near.differing > 30
    other = record(tmp_path / "there.mcap", Bundle.load(there))  # the same inputs give what replay made itself
    apart = np.degrees(np.abs(np.array(commands(log)) - np.array(commands(other))))
    step, joint = np.unravel_index(np.argmax(apart), apart.shape)
    assert near.largest.degrees == pytest.approx(apart.max()) and 0 < apart.max() < 0.2
    assert (near.largest.joint, near.largest.number) == (
        so101.JOINTS[joint],
        step + 1,
    )  # there is no command before the first Prior
    assert near.largest.t_s == pytest.approx(0.02 * (step + 1))
    apart = near.largest.degrees
    assert replay(log, there, within_deg=apart).passed and not replay(log, there, within_deg=apart * 0.999).passed
    said = CliRunner().invoke(main, ["replay", str(log), "--bundle", str(there), "--within", "0.2"])
    assert said.exit_code == 0 and "first difference: target number 1" in said.stdout and "identical" not in said.stdout
    assert f"within 0.2 degrees: the largest difference of a command is {apart:.2g} degrees" in said.stdout
    said = CliRunner().invoke(main, ["replay", str(log), "--bundle", str(there), "--within", "0.00001"])
    assert said.exit_code == 1 and "not within 1e-05 degrees: the largest difference" in said.stdout


def test_a_log_of_the_same_processor_is_identical_also_where_degrees_are_allowed(log):
    result = replay(log, within_deg=0.2)
    assert result.identical and result.passed and result.largest is None and (result.steps, result.priors) == (40, 7)
    said = CliRunner().invoke(main, ["replay", str(log.parent), "--within", "0.2"])  # the folder of --record
    assert said.exit_code == 0 and said.stdout.endswith("identical, bit for bit\n")
    assert "must be a number" in CliRunner().invoke(main, ["replay", str(log), "--within", "nan"]).stderr


def test_each_prior_goes_on_from_the_recorded_plan_so_that_differences_do_not_add_up(tmp_path, monkeypatch):
    """Plans depend on the last one here: where a recorded plan was another, so is the next one that the replay
    makes."""
    noise = {
        "noise": INPUTS["predictive"]["noise"],
        **INPUTS["predictive"],
    }  # the input that an engine's answer depends on
    bundle = with_engine(tiny_bundle(tmp_path, gate=0.6), "predictive", noise, outputs(0.6)["predictive"])
    log = record(tmp_path / "run.mcap", Bundle.load(bundle))
    assert replay(log).identical
    records: list[Any] = list(read_log(log))
    at = [i for i, r in enumerate(records) if isinstance(r, PriorRecord)][3]
    records[at] = dataclasses.replace(records[at], chunk=records[at].chunk + np.float32(0.05))
    monkeypatch.setattr("runtime.observe.replay.read_log", lambda path: iter(records))
    result = replay(log, within_deg=1000.0)
    assert result.difference.number == records[at].number and result.differing > 1


def test_a_command_that_is_not_there_is_no_matter_of_degrees(log, monkeypatch):
    records: list[Any] = list(read_log(log))
    at = [i for i, r in enumerate(records) if isinstance(r, TickRecord)][9]
    records[at] = dataclasses.replace(records[at], command=b"")
    monkeypatch.setattr("runtime.observe.replay.read_log", lambda path: iter(records))
    result = replay(log, within_deg=1000.0)
    assert not result.passed and result.stopped and result.steps == 9
    assert result.difference.what == "command" and result.difference.recorded == []


def as_version_2(log, path):
    """The log in the format of version 2: pictures packed by ourselves, health as events, no future, nothing for other
    programs."""
    with open(path, "wb") as f:
        writer = Writer(f, chunk_size=1 << 40, compression=CompressionType.LZ4)
        writer.start(profile="", library="harmowam log 2")
        meta = {k: v for k, v in read_meta(log).items() if k != "joints"}
        writer.add_metadata("run", {"json": json.dumps({**meta, "version": 2})})
        channels: dict[str, int] = {}

        def put(topic, t_ns, data, sequence, encoding="harmowam"):
            channel = channels.get(topic) or channels.setdefault(topic, writer.register_channel(topic, encoding, 0))
            writer.add_message(channel, t_ns, data, t_ns, sequence)

        with open(log, "rb") as raw:
            for _, channel, message in make_reader(raw).iter_messages(log_time_order=False):
                if channel.topic in ("fast/step", "slow/prior", "arm/state"):
                    put(channel.topic, message.log_time, message.data, message.sequence)
                elif channel.topic.startswith("camera/"):
                    t_ns, image = image_of(message.data)
                    packed = struct.pack("<qII", t_ns, image.shape[1], image.shape[0]) + image.tobytes()
                    put(channel.topic, t_ns, packed, message.sequence)
        put("event", 0, b'{"kind": "health", "state": "RUNNING", "reasons": []}', 0, "json")
        writer.add_metadata("end", {"dropped": "0"})
        writer.finish()
    return path


def test_a_log_of_version_2_still_replays(log, tmp_path):
    old = as_version_2(log, tmp_path / "old.mcap")
    result = replay(old)
    assert result.identical and (result.steps, result.priors, result.gap) == (40, 7, "")

    def mine(records):
        return plain(r for r in records if isinstance(r, (TickRecord, PriorRecord, FrameRecord)))

    assert mine(read_log(old)) == mine(read_log(log))
    assert [r["state"] for r in read_log(old) if isinstance(r, dict) and r.get("kind") == "health"] == ["RUNNING"]


@pytest.mark.parametrize(("version", "mend"), [(1, "with the release that recorded it"), (4, "upgrade harmowam")])
def test_a_log_of_a_version_that_is_not_known_is_refused(tmp_path, version, mend):
    writer = LogWriter(tmp_path / "run.mcap", {"task": TASK, "version": version}, reserve_bytes=0)
    writer.health(0, Health.RUNNING, [])
    writer.close()
    with pytest.raises(LogError, match=f"version {version}, this program reads 2 to 3: .*{mend}"):
        replay(tmp_path / "run.mcap")


def test_a_refused_command_without_numbers_can_be_logged(tmp_path):
    """JSON knows no NaN: other programs get null, replay the bits."""
    nan = np.full(6, np.nan, np.float32)
    log = LogWriter(tmp_path / "run.mcap", {"task": TASK, "joints": list(so101.JOINTS)}, reserve_bytes=0)
    obs = Observation(5, {}, nan, nan, 1)
    log.tick(
        5, obs, {}, -1, Command(5, 6, nan, nan, gate=float("nan")), np.full((3, 6), np.nan), reset=False, sent=False
    )
    log.close()
    assert not log.fault
    (kept,) = (r for r in read_log(tmp_path / "run.mcap") if isinstance(r, TickRecord))
    assert np.isnan(Command.unpack(kept.command).q_rad).all()
    with open(tmp_path / "run.mcap", "rb") as f:
        (shown,) = (json.loads(m.data) for _, _, m in make_reader(f).iter_messages(topics=["command"]))
    assert shown["gate"] is None and shown["q_rad"] == dict.fromkeys(so101.JOINTS)


def plain(records):
    """What records hold, in a form that can be compared."""
    return [repr(sorted(r.items())) if isinstance(r, dict) else repr(dataclasses.astuple(r)) for r in records]


def chunks(path):
    """Where the chunks of a log lie: (first byte of the record, of its data, end) each."""
    raw, at, found = path.read_bytes(), 8, []
    while at < len(raw) - 8:
        opcode, length = struct.unpack_from("<BQ", raw, at)
        if opcode == 6:
            found.append((at, at + 9 + 28 + 4 + len("lz4") + 8, at + 9 + length))
        at += 9 + length
    return found


def spoilt(log, path, at, data):
    path.write_bytes(log.read_bytes())
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(data)
    return path


def test_a_log_that_was_cut_short_replays_up_to_the_cut(log, tmp_path):
    raw = log.read_bytes()
    (tmp_path / "cut.mcap.partial").write_bytes(raw[: len(raw) * 2 // 3])
    *records, last = read_log(tmp_path / "cut.mcap")
    assert last["kind"] == CUT and len(records) > 40
    assert plain(records) == plain(read_log(log))[: len(records)]
    result = replay(tmp_path / "cut.mcap")
    assert 0 < result.steps < 40 and result.identical and "cut off" in result.gap
    said = CliRunner().invoke(main, ["replay", str(tmp_path / "cut.mcap")])
    assert said.exit_code == 0 and "stopped early: the log was cut off" in said.stdout
    assert said.stdout.endswith("identical, bit for bit, up to there\n")


@pytest.mark.parametrize("left", [0.1, 0.5, 0.99])
def test_wherever_a_log_was_cut_it_is_cut_off_and_not_damaged(log, tmp_path, left):
    """In a chunk, at its end, in a length, in the closing magic."""
    raw = log.read_bytes()
    first, _, end = chunks(log)[1]
    for keep in {int(len(raw) * left), first + 4, end, len(raw) - 3}:
        (tmp_path / "cut.mcap").write_bytes(raw[:keep])
        *_, last = read_log(tmp_path / "cut.mcap")
        assert last["kind"] == CUT, keep


def test_nothing_is_said_of_a_whole_log(log):
    assert not any(isinstance(r, dict) and r.get("kind") in (CUT, DAMAGED) for r in read_log(log))


DAMAGE = {
    "300 kB of zeros": lambda log: (log.stat().st_size * 3 // 10, bytes(300_000)),
    "2 kB of zeros": lambda log: (log.stat().st_size * 3 // 10, bytes(2_000)),
    "one picture's byte": lambda log: (chunks(log)[1][1] + 5_000, b"\x5a\xa5"),
    "the kind of a chunk that names topics": lambda log: (chunks(log)[1][0], b"\x70"),
    "a chunk's kind": lambda log: (chunks(log)[2][0], b"\x70"),
    "the last chunk's kind": lambda log: (chunks(log)[-1][0], b"\x70"),
    "a length beyond the end": lambda log: (chunks(log)[1][0] + 1, struct.pack("<Q", 1 << 50)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_log_is_not_called_identical_and_no_engine_is_blamed(log, tmp_path, damage):
    path = spoilt(log, tmp_path / "run.mcap", *DAMAGE[damage](log))
    result = replay(path)
    assert result.difference is None and result.damaged and not result.identical
    assert 0 < result.steps < 40 and "damaged" in result.gap
    said = CliRunner().invoke(main, ["replay", str(path)])
    assert said.exit_code == 2 and "identical" not in said.output
    assert f"{result.steps} fast steps before that are the same" in said.stderr and "another copy" in said.stderr


def test_a_log_that_is_damaged_at_its_beginning_is_refused_as_such(log, tmp_path):
    path = spoilt(log, tmp_path / "run.mcap", log.read_bytes().index(b'"bundle"'), b"\xff\xff")
    with pytest.raises(LogError, match="is damaged at its beginning"):
        replay(path)


def test_a_newer_log_that_was_cut_off_is_not_taken_for_the_whole_one_unsaid(log, tmp_path):
    whole = Path(shutil.copyfile(log, tmp_path / "run.mcap"))
    assert "note:" not in CliRunner().invoke(main, ["replay", str(whole)]).stderr
    shutil.copyfile(log, tmp_path / "run.mcap.partial")
    said = CliRunner().invoke(main, ["replay", str(whole)])
    assert said.exit_code == 0 and "run.mcap.partial is what another run left that was cut off" in said.stderr


def test_what_is_no_log_is_refused(tmp_path, bundle):
    with pytest.raises(LogError, match="cannot be read"):
        replay(tmp_path / "none.mcap")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(LogError, match="is not a log of harmowam"):
        replay(tmp_path / "text")
    with pytest.raises(LogError, match="cannot be written"):
        LogWriter(tmp_path / "text" / "run.mcap", {})
    with pytest.raises(BundleError):
        replay(record(tmp_path / "run.mcap", bundle, ticks=2), tmp_path / "gone.bundle")


def test_nobody_but_the_fast_loop_keeps_the_writer_from_giving_pythons_lock_back(tmp_path):
    """The fast loop waits for that lock: a slow loop or a renderer that ran before the writer made it 5 ms late."""
    assert FAST_PRIORITY > LOG_PRIORITY > max(SLOW_PRIORITY, SIM_SERVO_PRIORITY, SIM_CAMERA_PRIORITY)
    log = LogWriter(tmp_path / "run.mcap", {"task": TASK})
    if may_prefer():
        deadline = time.monotonic() + 2
        while os.sched_getparam(log._thread.native_id or 0).sched_priority != LOG_PRIORITY:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    log.close()


def may_prefer():
    granted = prefer(1)
    prefer(0)
    return granted


def test_a_disk_that_fills_up_stops_the_recording_and_keeps_what_fitted(tmp_path):
    """The operating system refuses to let the file grow, as on a full disk."""
    z = np.zeros(6, np.float32)
    state = JointState(0, z, z, z, z, z, z, np.zeros(6, np.uint8))
    rng = np.random.default_rng(0)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = LogWriter(tmp_path / "run.mcap", {"task": TASK}, reserve_bytes=0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, old[1]))
    try:
        for k in range(60):
            frame = rng.integers(0, 255, (240, 320, 3)).astype(np.uint8)
            obs = Observation(k, {"front": frame}, state.q_rad, state.q_rad, k)
            log.tick(k, obs, {"front": Frame(k, frame, k)}, -1, None, np.zeros((3, 6)), reset=False, sent=False)
            while log._waiting and not log.fault:
                time.sleep(0.001)
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert log.fault == "recording stopped: File too large"
    kept = [r for r in read_log(tmp_path / "run.mcap") if isinstance(r, TickRecord)]
    assert [t.number for t in kept] == list(range(len(kept))) and 5 <= len(kept) <= 14


def test_a_nearly_full_disk_is_left_alone(tmp_path):
    log = LogWriter(tmp_path / "run.mcap", {"task": TASK}, reserve_bytes=1 << 62)
    log.health(0, Health.RUNNING, [])
    log.close()
    assert "are left on the disk" in log.fault and read_meta(tmp_path / "run.mcap")["task"] == TASK
