"""`harmowam evaluate`: what it refuses, prints and writes; and the page of results."""

import json
import re
import shutil

import pytest
from click.testing import CliRunner

from benchmarks.results_page import page
from benchmarks.results_plan import Work
from export.roofline import predicted
from harmowam.cli import main
from harmowam.evaluate import _schedule
from runtime.bundle import Bundle
from sim import evaluate as ev
from sim.results import sentences, summary, table
from sim.tasks import DISTURBED, ENVIRONMENTS
from sim.virtual_time import Schedule
from tests.sim.rows import jobs, write_rows
from tests.tiny import edit_manifest, tiny_bundle


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
    assert said[1] == (
        "gated: the jaw was told to open or close 16 times; in 1 of these the order was reversed more than once in "
        "quick succession (up to 3 times)"
    )
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
    assert "episode/s" not in result.stderr, "no progress bar where nobody watches a terminal"
    assert re.search(r"12 episodes of the development seeds; 2 played now in \d+ s \([\d.]+ simulated", result.output)


def test_figures_of_a_bundle_that_failed_its_gates_say_so(bundle, tmp_path):
    failed = shutil.copytree(bundle, tmp_path / "failed.bundle")
    edit_manifest(failed, lambda m: m["quantization"].update(failed=True))
    rows, out = tmp_path / "rows.jsonl", tmp_path / "e.json"
    write_rows(rows, jobs(failed, ("gated",), ("seen",), 1), lambda j: True)
    options = ["--bundle", failed, "--task", "plate", "--episodes", 1, "--rows", rows, "--json", out]
    result = CliRunner().invoke(main, ["evaluate", *map(str, options)])
    assert result.exit_code == 0, result.output
    assert "\n1 episode of the development seeds; all of them" in result.stdout
    assert "(below zero: more success than there)" in result.stdout
    assert f"{failed} FAILED the gates of its export" in result.stdout
    assert json.loads(out.read_text())["failed_gates"] is True


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


def test_the_help_names_what_there_is_and_no_robot_file():
    """An evaluation drives the simulated arm and reads no robot file."""
    said = " ".join(CliRunner().invoke(main, ["evaluate", "--help"], terminal_width=200).stdout.split())
    assert "(default: auto, which is TensorRT if built for this board, else the CPU)" in said
    assert said.count("several with commas, or all") == 2 and "robot file" not in said
    assert all(name in said for name in (*ev.OURS, *ENVIRONMENTS, DISTURBED, "chunk", "diffusion"))
