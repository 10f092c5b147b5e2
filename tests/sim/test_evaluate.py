"""Evaluation on toy engines: starts, and rows that are not run again."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sim import disturbance, results
from sim import evaluate as ev
from sim.expert import HOVER
from sim.tasks import SEEN, UNSEEN, sample_layout
from sim.virtual_time import Schedule
from sim.workers import WorkerError, spawned
from tests.sim.rows import jobs
from tests.tiny import TASK


def test_false_finishes_are_counted(done_bundle, tmp_path):
    (row,) = ev.run_jobs(jobs(done_bundle, count=1), tmp_path / "rows", workers=1)
    assert (row["success"], row["said_done"], row["ever"], row["ended"]) == (False, True, False, "done")
    assert row["seconds"] < 1.0 and row["failure"] == "never got to the item"
    (cell,) = results.cells([row])
    assert (cell["said_done"], cell["false_finishes"], cell["ever"]) == (1, 1, 0)
    assert "gated: said done in 1 of 1 episode, in 1 of them wrongly; 0 had success at some time" in results.sentences(
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
