"""Every run leaves a folder of its own, named by minute and task."""

import datetime
import json

import pytest

from harmowam.folders import folder_name, left_in, new_folder
from runtime.observe.report import write_report
from tests.command import harmowam
from tests.tiny import TASK, tiny_bundle

NOW = datetime.datetime(2026, 12, 1, 14, 3, tzinfo=datetime.timezone.utc)


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("HARMOWAM_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_a_folder_is_named_by_minute_and_task():
    assert folder_name(TASK, NOW) == "2026-12-01T1403-put-the-red-cube-on-the-plate"
    assert folder_name("../Türm a/b; " + 70 * "x", NOW) == "2026-12-01T1403-t-rm-a-b-" + 50 * "x"
    assert folder_name("拿杯子", NOW) == "2026-12-01T1403-run"


def test_runs_of_one_minute_do_not_share_a_folder(tmp_path):
    made = [new_folder("a", NOW, tmp_path / "runs").name for _ in range(3)]
    assert made == ["2026-12-01T1403-a", "2026-12-01T1403-a-2", "2026-12-01T1403-a-3"]


def test_a_run_that_wrote_nothing_leaves_no_folder(runs):
    with left_in(None, "a", "--record", print) as folder:
        assert folder is not None and folder.parent == runs and folder.is_dir()
    assert not list(runs.iterdir())
    with pytest.raises(ValueError), left_in(None, "a", "--record", print) as folder:
        assert folder is not None
        (runs / folder.name / "report.json").write_text("{}")
        raise ValueError
    assert [p.name for p in runs.glob("*/*")] == ["report.json"]


def test_a_place_that_cannot_be_written_keeps_no_arm_from_moving(runs):
    runs.write_text("a file")
    said: list[str] = []
    with left_in(None, "a", "--record", said.append) as folder:
        assert folder is None
    assert f"{runs} cannot be written" in said[0] and "name a folder with --record" in said[0]


def test_a_named_folder_is_taken_as_it_is(runs, tmp_path):
    with left_in(tmp_path / "mine", "a", "--record", print) as folder:
        assert folder == tmp_path / "mine"
    assert not runs.exists()


def test_help_says_what_is_kept_and_what_a_log_costs():
    said = " ".join(harmowam("run", "--help").output.split())
    assert "runs/DATE-TASK" in said and "with --record or --log only" in said and "2.8 GB a minute" in said
    for verb in ("demo", "profile"):
        assert "runs/DATE-TASK" in harmowam(verb, "--help").output


STAGE = {"p50_ms": 1.0, "p99_ms": 2.0, "max_ms": 3.0, "budget_ms": 20.0}
SERIES = {"p50": 1.0, "p99": 2.0, "max": 3.0}


def test_a_run_without_a_log_has_a_page_that_says_how_to_keep_one(tmp_path):
    report = {
        "task": TASK,
        "robot": "so101",
        "quantization": "int8 qdq",
        "engine": "cpu",
        "policy": "gated",
        "seconds": 20.0,
        "fast_hz": 50.0,
        "slow_hz": 8.0,
        "ticks": 1000,
        "deadline_misses": 0,
        "commanded": True,
        "time_to_first_command_s": 3.0,
        "observation_to_wire_ms": SERIES,
        "prior_age_ms": SERIES,
        "stages": {"fast.engine": STAGE},
        "health": {"state": "ok", "changes": []},
        "held_s": 0.0,
        "refused_outputs": 0,
        "interrupted": False,
    }
    write_report(tiny_bundle(tmp_path / "b"), tmp_path, report)
    page = (tmp_path / "report.html").read_text()
    assert "fast.engine" in page and "<video" not in page
    assert "holds no log" in page and "harmowam run --record FOLDER" in page
    assert json.loads((tmp_path / "report.json").read_text()) == report
