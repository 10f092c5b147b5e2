"""Evaluation on toy engines: starts, rows that are not run again, and the loop in virtual time."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from benchmarks.results_page import page
from benchmarks.results_plan import Work
from export.roofline import predicted
from firmware_bridge.motion.messages import Expert
from harmowam.cli import main
from harmowam.evaluate import _schedule
from runtime.bundle import Bundle
from runtime.policies.finish import Finish
from runtime.policies.harmowam import FastStep, SlowStep
from sim import disturbance, results
from sim import evaluate as ev
from sim.expert import HOVER
from sim.plant import virtual_motor
from sim.results import sentences, summary, table
from sim.tasks import ENVIRONMENTS, SEEN, UNSEEN, sample_layout
from sim.virtual_time import Schedule, run_episode
from sim.workers import WorkerError, spawned
from sim.world import World
from tests.tiny import TASK, edit_manifest, tiny_bundle

S = 1_000_000_000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def rig(bundle):
    world = World(0)
    cameras = {name: world.camera(name) for name in ("front", "wrist")}
    opened = Bundle.load(bundle)
    yield world, SlowStep(opened, TASK, cameras), FastStep(opened, cameras)
    world.close()


def episode(rig, policy="gated", schedule=Schedule(), limit_s=1.5, **settings):
    world, slow, fast = rig
    world.reset(sample_layout(np.random.default_rng(3), TASK))
    fast.policy, fast.uses_pictures, fast.other_gate = policy, True, None
    for name, value in settings.items():
        setattr(fast, name, value)
    return run_episode(world, slow, fast, virtual_motor(world), schedule, limit_s)


def jobs(bundle, policies=("gated",), environments=("seen",), count=2, tasks=("plate",), **more):
    return ev.jobs_for(bundle, policies, environments, tasks, range(count), **more)


# -- the loop in virtual time ------------------------------------------------------------------------------------------


def test_the_slow_loop_never_overlaps_itself(rig):
    slow = [p.t_ready_ns for p in episode(rig, schedule=Schedule(world_model_ms=300.0), limit_s=2.0).priors]
    assert np.diff(slow).min() >= 0.305 * S and len(slow) == 6
    assert len(episode(rig).priors) == 12  # 8 Hz when it is quick


def test_frames_that_nobody_looks_at_are_not_rendered(rig, monkeypatch):
    world, looked = rig[0], []
    render = world.render

    def noted(name):
        looked.append(name)
        return render(name)

    monkeypatch.setattr(world, "render", noted)
    quick = episode(rig, "predictive", uses_pictures=False)
    assert len(looked) == 2 * 13 and len(quick.ticks) == 38  # 13 slow steps begin
    assert all(t.expert in (Expert.NONE, Expert.PREDICTIVE) for t in quick.ticks)


def test_a_fixed_expert_needs_no_fast_engine(rig):
    """A predictive expert that is chosen throughout needs no fast engine: its commands are the same with and
    without."""
    a, b = (episode(rig, "predictive", uses_pictures=on) for on in (True, False))
    assert np.array_equal([t.sent_target for t in a.ticks], [t.sent_target for t in b.ticks])


def test_the_gate_can_be_replaced(rig):
    for value, expert in ((0.0, Expert.REACTIVE), (1.0, Expert.PREDICTIVE)):
        ticks = episode(rig, other_gate=lambda value=value: value).ticks
        assert {t.expert for t in ticks[8:]} == {expert}


def test_the_average_is_half_of_either(rig):
    """The toy's predictive expert stays in place, so the average moves where the reactive expert moves, at half its
    speed."""

    def way(policy):
        sent = np.array([t.sent_target for t in episode(rig, policy, limit_s=0.4).ticks if t.expert != Expert.NONE])
        return np.linalg.norm(sent[-1, :2] - sent[0, :2])

    assert way("predictive") < 0.1 * way("reactive")
    assert 0.4 < way("average") / way("reactive") < 0.6


def test_success_must_last(rig):
    """A cube lies on the plate from the start: the episode continues until the cube has lain there for `rest_s`, or is
    taken away."""
    world, slow, fast = rig
    # The toy's predictive expert stays where it is.
    fast.policy, fast.uses_pictures, fast.other_gate = "predictive", False, None

    def lasted(rest_s, taken_at_s=99.0):
        world.reset(sample_layout(np.random.default_rng(3), TASK))
        at = world.free_joint(world.layout.roles[0])
        world.data.qpos[at : at + 3] = world.position("plate") + np.array([0.0, 0.0, 0.018])
        world.advance(0.4)

        def watch(now_ns, obs):
            if now_ns >= (1 + taken_at_s) * S:
                world.data.qpos[at] += 0.1
            return ""

        return run_episode(world, slow, fast, virtual_motor(world), Schedule(rest_s=rest_s), 1.0, watch)

    for rest_s in (0.2, 3.0):
        done = lasted(rest_s)
        assert done.success and done.seconds == pytest.approx(rest_s, abs=0.02)
    undone = lasted(3.0, taken_at_s=1.0)
    assert not undone.success and undone.ended == "time" and undone.seconds == pytest.approx(3.8, abs=0.02)


@pytest.fixture(scope="module")
def done_bundle(tmp_path_factory):
    """A policy that says from its first look on that it is done."""
    return tiny_bundle(tmp_path_factory.mktemp("done"), done=0.95)


def test_a_policy_that_says_when_it_is_done_is_judged_at_that_moment(done_bundle):
    """The cube lies on the plate from the start and is taken away later: no success of the moment ends the episode,
    and what counts is how it is when the policy says done."""
    opened, world = Bundle.load(done_bundle), World(0)
    cameras = {name: world.camera(name) for name in ("front", "wrist")}
    slow, fast = SlowStep(opened, TASK, cameras), FastStep(opened, cameras, policy="predictive")

    def played(for_s, taken_at_s=99.0):
        world.reset(sample_layout(np.random.default_rng(3), TASK))
        at = world.free_joint(world.layout.roles[0])
        assert at is not None
        world.data.qpos[at : at + 3] = world.position("plate") + np.array([0.0, 0.0, 0.018])
        world.advance(0.4)

        def watch(now_ns, obs):
            if now_ns >= (1 + taken_at_s) * S:
                world.data.qpos[at] += 0.1
            return ""

        finish = Finish(0.9, for_s)
        return run_episode(world, slow, fast, virtual_motor(world), Schedule(), 1.5, watch, finish=finish)

    right = played(0.6)
    assert (right.success, right.ever, right.ended) == (True, True, "done")
    assert right.seconds == pytest.approx(0.6 + 0.08, abs=0.1)  # and a picture and a plan before it
    undone = played(0.6, taken_at_s=0.4)
    assert (undone.success, undone.ever, undone.ended) == (False, True, "done")
    never = played(99.0)
    assert (never.success, never.ever, never.ended) == (False, True, "time")
    world.close()


def test_false_finishes_are_counted(done_bundle, tmp_path):
    (row,) = ev.run_jobs(jobs(done_bundle, count=1), tmp_path / "rows", workers=1)
    assert (row["success"], row["said_done"], row["ever"], row["ended"]) == (False, True, False, "done")
    assert row["seconds"] < 1.0 and row["failure"] == "never got to the item"
    (cell,) = results.cells([row])
    assert (cell["said_done"], cell["false_finishes"], cell["ever"]) == (1, 1, 0)
    assert "gated: said done in 1 of 1 episodes, in 1 of them wrongly; 0 had success at some time" in results.sentences(
        [row]
    )


# -- starts ------------------------------------------------------------------------------------------------------------


def test_all_policies_start_alike_and_no_two_splits_do(rig, bundle):
    world = rig[0]

    def places(**more):
        return [ev.start_of(world, j).places for j in jobs(bundle, **more)]

    both = places(policies=("gated", "reactive"), count=1)
    assert both[0] == both[1]
    assert places(split="test") != places(split="development")
    assert places(environments=("background",)) == places() == places(environments=("object",))
    collected = sample_layout(np.random.default_rng([0, 0, 0, 1]), task="plate").places
    assert collected not in places(count=5) + places(count=5, split="test")


def test_the_position_environment_is_outside_what_was_seen(rig, bundle):
    for j in jobs(bundle, environments=("position",), count=5):
        layout = ev.start_of(rig[0], j)
        y = layout.places[layout.roles[0]][1]
        assert y >= UNSEEN[0][1] > SEEN[1][1]


def test_near_is_at_hover_above_the_first_subgoal(rig, bundle):
    for j in jobs(bundle, starts=("near",), count=3):
        layout = ev.start_of(rig[0], j)
        assert layout.start[2] == HOVER and layout.environment == "seen"
        assert np.linalg.norm(layout.start[:2] - layout.places[layout.roles[0]][:2]) < 0.03


def test_disturbed_starts_are_those_of_seen_and_what_happened_is_in_the_row(rig, bundle, monkeypatch):
    """The toy's engines say the same whatever they see, so its commands do not change."""
    (still,), (moved,) = (jobs(bundle, environments=(e,), count=1) for e in ("seen", "disturbed"))
    assert ev.start_of(rig[0], still).places == ev.start_of(rig[0], moved).places
    monkeypatch.setattr(ev, "LIMIT_S", 0.3)
    monkeypatch.setattr(disturbance, "draw", lambda rng: disturbance.Plan(0, False, 0.0))  # at once
    row = ev.run_job(moved)
    assert 0.03 <= row["displaced_m"] <= 0.08 and (row["displaced_s"], row["displaced_at"]) == (0.0, "transit")
    assert row["displaced"] in ("red_cube", "blue_cube") and row["reaction_ms"] is None and row["jaw_reversals"] == []
    assert not any(name.startswith(("displaced", "reaction")) for name in ev.run_job(still))


def test_a_row_does_not_depend_on_what_its_worker_played_before(bundle, monkeypatch):
    monkeypatch.setattr(ev, "LIMIT_S", 0.4)
    want = jobs(bundle, ("gated", "predictive"), ("background", "disturbed"), 1)
    alone = {}
    for job in want:
        monkeypatch.setattr(ev, "_cache", {})
        alone[job.key] = ev.run_job(job)
    assert {job.key: ev.run_job(job) for job in reversed(want)} == alone


# -- rows --------------------------------------------------------------------------------------------------------------


def test_rows_are_not_run_again_but_a_cut_line_is(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(ev, "LIMIT_S", 0.5)
    rows, want = tmp_path / "rows.jsonl", jobs(bundle)
    first = ev.run_jobs(want, rows, workers=1)
    assert [r["key"] for r in first] == [j.key for j in want] and all(r["failure"] for r in first)
    assert {"transit", "success", "switches", "gate_right", "gate_frames"} <= set(first[0])
    text = rows.read_bytes()
    rows.write_bytes(text[:-20])  # killed while writing
    assert len(ev.read_rows(rows)) == 1

    def not_again(*_):
        raise AssertionError("nothing was left to run")

    again = ev.run_jobs(want, rows, workers=1)
    assert again == first and sorted(rows.read_bytes().splitlines()) == sorted(text.splitlines())
    monkeypatch.setattr("multiprocessing.get_context", not_again)
    assert ev.run_jobs(want, rows) == first


def test_a_worker_that_is_killed_ends_the_run_with_one_sentence():
    with pytest.raises(WorkerError, match="was killed, most likely because memory ran out"):
        list(spawned(os._exit, [1, 1], 1))


def test_workers_end_with_their_parent():
    """Otherwise they would wait for work for ever and keep their memory."""
    code = (
        "import time; from sim.workers import spawned\nif __name__ == '__main__': list(spawned(time.sleep, [60.0], 1))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(ev.__file__).parents[1])
    try:
        worker = wait_for(lambda: workers_of(parent.pid), 20.0)
        time.sleep(1.0)  # the pool is at work
    finally:
        parent.kill()
        parent.wait()
    assert wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in worker), 10.0)


def workers_of(parent: int) -> list[int]:
    """Processes of a pool, without the resource tracker, which ends by itself."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]


def wait_for(there, seconds):
    end = time.monotonic() + seconds
    while not (got := there()) and time.monotonic() < end:
        time.sleep(0.05)
    return got


def test_rows_of_something_else_are_refused(tmp_path):
    with pytest.raises(ev.EvaluationError, match=r"rows\.jsonl cannot be written"):
        (tmp_path / "file").write_text("")
        ev.run_jobs([], tmp_path / "file" / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"b": 2}\n')
    with pytest.raises(ev.EvaluationError, match="line 1 is no row"):
        ev.read_rows(tmp_path / "rows.jsonl")


def test_every_setting_of_an_episode_changes_its_key(bundle):
    a = jobs(bundle, count=1)[0]
    more = [
        *jobs(bundle, policies=("reactive",), count=1),
        *jobs(bundle, environments=("object",), count=1),
        jobs(bundle)[1],
        *jobs(bundle, split="test", count=1),
        *jobs(bundle, starts=("near",), count=1),
        *jobs(bundle, tasks=(TASK,), count=1),
        *jobs(bundle, schedule=Schedule(world_model_ms=250), count=1),
    ]
    assert len({a.key, *(j.key for j in more)}) == len(more) + 1


# -- the command, and the page -----------------------------------------------------------------------------------------


def test_a_board_as_latency_is_what_the_roofline_predicts_there(tmp_path):
    opened = Bundle.load(tiny_bundle(tmp_path))
    wanted = predicted({n: opened.path / e.file for n, e in opened.manifest.engines.items()})[2]
    assert (wanted["board"], wanted["mode"]) == ("Orin Nano 8GB", "25W")
    schedule = _schedule(25.0, ("orin-nano-8gb-25w", "fast=7"), opened)
    assert (schedule.world_model_ms, schedule.predictive_ms) == (wanted["world_model"], wanted["predictive"])
    assert schedule.fast_ms == 7.0 and schedule.predictive_ms > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--policy", "best"], "--policy 'best' does not exist: use gated, reactive"),
        (["--environment", "mars"], "--environment 'mars' does not exist: use seen, background"),
        (["--latency", "gpu=3"], "write world_model=MS"),
        (["--latency", "fast=²"], "write world_model=MS"),
        (["--latency", "orin"], "or one of orin-nano-8gb-7w, orin-nano-8gb-15w"),
        (["--camera-fps", "nan"], "must be a number"),
        (["--json", "/dev/null/x.json"], "cannot be written (/dev/null is a file): name another file with --json"),
        (["--rows", "/dev/null/x.jsonl"], "cannot be written (/dev/null is a file): name another file with --rows"),
        (["--task", "stack"], "does not know the task 'stack the red cube on the blue cube'"),
        (["--shard", "3/2"], "--shard 3/2 is not understood"),
    ],
)
def test_an_impossible_evaluation_is_refused_in_one_sentence(bundle, options, sentence):
    result = CliRunner().invoke(main, ["evaluate", "--bundle", str(bundle), "--task", "plate", *options])
    assert result.exit_code == 2 and sentence in result.output
    assert "engines run" not in result.output, "what they run on is said once the arguments are right"


def test_an_instruction_that_only_the_bundle_knows_cannot_be_played(bundle, tmp_path):
    own = shutil.copytree(bundle, tmp_path / "own.bundle")
    edit_manifest(own, lambda m: m["tasks"].update({"pick up the pen": next(iter(m["tasks"].values()))}))
    with pytest.raises(ev.EvaluationError, match="the simulator has no task 'pick up the pen': choose one of"):
        ev.jobs_for(own, ["gated"], ["seen"], ["pick up the pen"], [0])


def test_the_table_and_the_json(bundle, tmp_path):
    """Rows are made up and nothing is run: 3 of 4 succeed on seen, 2 of 4 in another position."""
    rows, out = tmp_path / "rows.jsonl", tmp_path / "e.json"
    write_rows(
        rows,
        jobs(bundle, ("gated", "reactive"), ("seen", "position"), 4),
        lambda j: j.seed < {"seen": 3, "position": 2}[j.environment] - (j.policy != "gated"),
    )
    result = CliRunner().invoke(
        main,
        [
            "evaluate",
            "--bundle",
            str(bundle),
            "--task",
            "plate",
            "--policy",
            "gated,reactive",
            "--environment",
            "seen,position",
            "--episodes",
            "4",
            "--rows",
            str(rows),
            "--json",
            str(out),
        ],
    )
    assert result.exit_code == 0, result.output
    assert "75 % (30-95)" in result.output and "33 %" in result.output  # 1 - 2/3
    assert "gated minus better single expert (reactive), mean of unseen, paired: +25.0 points" in result.output
    assert result.output.splitlines()[-1].endswith("all of them were played by an earlier run")
    said = json.loads(out.read_text())
    assert said["played"] == 0
    cell = next(c for c in said["cells"] if c["policy"] == "gated" and c["environment"] == "seen")
    assert {k: cell[k] for k in ("task", "episodes", "successes", "transit")} == {
        "task": "plate",
        "episodes": 4,
        "successes": 3,
        "transit": 1.0,
    }
    assert {"wilson95", "interaction_given_transit", "gate_accuracy", "switches_per_episode"} <= set(cell)
    assert said["failed_gates"] is False and "FAILED" not in result.output


def test_the_summary_tells_of_displacements_reactions_and_a_jaw_that_chatters(bundle):
    """Four starts; something moves in three, of which one is then missed and one gets no reaction."""

    def row(job, moved):
        there = {"policy": job.policy, "environment": job.environment, "task": job.task, "seed": job.seed}
        there |= {"start": "home", "transit": True, "seconds": 5.0, "switches": 2, "failure": "placed it badly"}
        there |= {"success": not moved or job.seed != 0, "jaw_reversals": [0, 3] if moved and job.seed == 1 else [0, 1]}
        if moved:
            there |= {"displaced_s": None if job.seed == 3 else 1.0, "reaction_ms": (60.0, 100.0, None, None)[job.seed]}
        return there

    rows = [row(j, j.environment == "disturbed") for j in jobs(bundle, environments=("seen", "disturbed"), count=4)]
    found = summary(rows)
    assert found["disturbed"]["gated"] == {
        "episodes": 4,
        "displaced": 3,
        "pairs": 3,
        "success": pytest.approx(2 / 3),
        "undisturbed": 1.0,
        "reaction_p50_ms": 80.0,
        "reaction_p99_ms": 99.6,
        "unreacted": 1,
    }
    assert found["jaw"]["gated"] == {"jaw_events": 16, "jaw_chattered": 1, "jaw_most": 3}
    said = sentences(rows)
    assert "gated, disturbed: moved in 3 of 4 episodes, 67 % of these solved (100 % of the same starts" in said[0]
    assert said[1].endswith("more than once in 1 of 16 events (at most 3 times)")
    assert [line[1] for line in table(rows)] == ["seen", "disturbed"]


def test_the_last_line_tells_how_fast_the_episodes_of_this_run_were_played(bundle, tmp_path, monkeypatch):
    """Ten rows of an earlier run, five simulated seconds each, are not counted; two new ones are."""
    monkeypatch.setattr(ev, "LIMIT_S", 0.5)
    rows, out = tmp_path / "rows.jsonl", tmp_path / "e.json"
    every = jobs(bundle, count=12)
    write_rows(rows, every[:10], lambda j: True)
    monkeypatch.setattr(ev, "spawned", lambda work, left, workers: map(work, left))  # with the limit set above
    options = ["--task", "plate", "--episodes", "12", "--rows", str(rows), "--json", str(out)]
    result = CliRunner().invoke(main, ["evaluate", "--bundle", str(bundle), *options])
    assert result.exit_code == 0, result.output
    said = json.loads(out.read_text())
    assert said["played"] == 2 and said["simulated_s"] == pytest.approx(1.0, abs=0.05)
    assert re.search(r"12 episodes of the development seeds; 2 played now in \d+ s \([\d.]+ simulated", result.output)


def test_figures_of_a_bundle_that_failed_its_gates_say_so(bundle, tmp_path):
    failed = shutil.copytree(bundle, tmp_path / "failed.bundle")
    edit_manifest(failed, lambda m: m["quantization"].update(failed=True))
    rows, out = tmp_path / "rows.jsonl", tmp_path / "e.json"
    write_rows(rows, jobs(failed, ("gated",), ("seen",), 2), lambda j: True)
    options = ["--bundle", failed, "--task", "plate", "--episodes", 2, "--rows", rows, "--json", out]
    result = CliRunner().invoke(main, ["evaluate", *map(str, options)])
    assert result.exit_code == 0, result.output
    assert f"{failed} FAILED the gates of its export" in result.stdout
    assert json.loads(out.read_text())["failed_gates"] is True


def write_rows(path, jobs, won):
    lines = []
    for j in jobs:
        success = bool(won(j))
        lines.append(
            json.dumps(
                {
                    "key": j.key,
                    "policy": j.policy,
                    "environment": j.environment,
                    "task": j.task,
                    "seed": j.seed,
                    "split": j.split,
                    "start": j.start,
                    "success": success,
                    "transit": True,
                    "seconds": 5.0,
                    "switches": 2,
                    "failure": "" if success else "placed it badly",
                    "gate_right": 97,
                    "gate_frames": 100,
                }
            )
        )
    path.write_text("\n".join(lines) + "\n")


def test_the_page_names_what_was_missed(bundle, tmp_path):
    every = jobs(bundle, ("gated", "reactive", "predictive"), ENVIRONMENTS, 5, split="test")
    curves = {ms: jobs(bundle, count=5, split="test", schedule=Schedule(world_model_ms=ms)) for ms in (0, 500)}
    write_rows(
        tmp_path / "rows.jsonl",
        [*every, *curves[0], *curves[500]],
        lambda j: j.seed < (4 if j.policy == "gated" else 2),
    )
    have = {r["key"]: r for r in ev.read_rows(tmp_path / "rows.jsonl")}
    checkpoint = tmp_path / "c.safetensors"
    checkpoint.write_bytes(b"weights")
    said = "Ours was trained for 5 minutes."
    work = Work(every, [], curves, {})
    text = page(work, have, checkpoint, said, 0.7, "python -m benchmarks.results", tmp_path)
    assert said in text and "60 of 60 episodes" in text and "| gated, seen | >= 90 % | **80.0 %, missed** |" in text
    assert "| gated, mean of the three unseen | >= 80 % | 80.0 % |" in text and "+40.0" in text
    assert "| gated minus better behaviour cloning, mean of unseen, paired | >= 33 points | not played |" in text
    assert "70 % of these were trained with drawn table tops" in text and "ACT of our size was not played" in text
    assert "| placed it badly | 1 / 3 | 3 / 9 | 3 / 9 |" in text
    assert {p.name for p in tmp_path.glob("*.png")} == {"results_policies.png", "results_latency.png"}
