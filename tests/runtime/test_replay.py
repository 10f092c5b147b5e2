"""A recorded run gives the same actions again, bit for bit; what differs is found."""

import dataclasses
import shutil
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from firmware_bridge.arms.so101 import FAMILY as so101
from firmware_bridge.motion.messages import Command, Expert
from harmowam.cli import main
from runtime.bundle import Bundle, sha256
from runtime.observe.episode import load_episode
from runtime.observe.log import LogWriter
from runtime.observe.log_reader import read_log
from runtime.observe.records import (
    FrameRecord,
    LogError,
    PriorRecord,
    TickRecord,
)
from runtime.observe.replay import replay
from tests.rig import START
from tests.runtime.recorded import record
from tests.tiny import INPUTS, edit_manifest, outputs, tiny_bundle, tiny_chunk_bundle, write_engine


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return Bundle.load(tiny_bundle(tmp_path_factory.mktemp("tiny"), gate=0.6))


@pytest.fixture(scope="module")
def log(bundle, tmp_path_factory):
    return record(tmp_path_factory.mktemp("log") / "run.mcap", bundle)


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


def test_a_run_of_several_tasks_is_replayed_like_any(tmp_path):
    """The second task begins when the policy says that the first one is done."""
    bundle = Bundle.load(tiny_bundle(tmp_path, gate=0.6, done=0.95))
    log = record(tmp_path / "run.mcap", bundle, ticks=60, then=["put the blue cube on the plate"])
    result = replay(log)
    assert result.identical and (result.steps, result.priors, result.gap) == (60, 10, "")


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


def test_a_log_without_the_first_prior_is_not_called_identical(log, monkeypatch):
    """Fast steps before the first Prior have nothing to be compared with."""
    rows = [r for r in read_log(log) if not isinstance(r, PriorRecord)]
    monkeypatch.setattr("runtime.observe.replay.read_log", lambda path: iter(rows))
    found = replay(log)
    assert found.steps > 0 and found.priors == 0 and found.gap
    assert not found.identical and not found.passed


def test_a_policy_that_remembers_before_it_has_made_a_plan_cannot_be_replayed(log, monkeypatch):
    monkeypatch.setattr("runtime.policies.harmowam.slow.SlowStep.remembers", True)
    with pytest.raises(LogError, match="says that it remembers a plan before it has made one"):
        replay(log)


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
    digest = sha256(path / "onnx" / f"{name}.onnx")
    edit_manifest(path, lambda m: m["files"].update({f"onnx/{name}.onnx": digest}))
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
    )  # no command before the first Prior
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


def test_a_folder_without_a_log_is_told_which_runs_keep_one(tmp_path):
    """`profile` leaves such folders."""
    (tmp_path / "profile.json").write_text("{}")
    said = CliRunner().invoke(main, ["replay", str(tmp_path)])
    assert said.exit_code == 2 and "holds no log (run.mcap): `run` keeps one with --record" in said.stderr
    assert "`profile` with --log FILE only" in said.stderr
