"""profile, replay and doctor from the command line: figures, files, verdicts, refusals."""

import json
import sys

import pytest
from click.testing import CliRunner
from mcap.reader import make_reader

from harmowam.cli import main
from runtime.observe.profile import Report, read_report
from tests.tiny import TASK, tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


def harmowam(*args):
    return CliRunner().invoke(main, [str(a) for a in args])


def test_a_profile_is_written_recorded_replayed_and_compared(bench, bundle, tmp_path):
    drive = ["profile", "--bundle", bundle, "--robot", bench.robot_file, "--task", TASK]
    out, log = tmp_path / "out", tmp_path / "run.mcap"
    first = harmowam(*drive, "--seconds", 2, "--out", out, "--log", log)
    assert first.exit_code == 0, first.output
    report = json.loads((out / "profile.json").read_text())
    assert read_report(out / "profile.json") == report and set(Report.__struct_fields__) <= set(report)
    assert {"fast.engine", "motor.read", "motor.write", "wire"} <= set(report["stages"])
    assert report["stages"]["fast.engine"]["p999_ms"] <= report["stages"]["fast.engine"]["max_ms"]
    assert report["log"]["dropped"] == 0 and report["health"]["state"] in ("running", "degraded")
    events = json.loads((out / "trace.json").read_text())["traceEvents"]
    assert {"fast.engine", "slow.world_model", "motor.read"} <= {e["name"] for e in events}
    assert (out / "profile.html").read_text().startswith("<!doctype html>")

    again = harmowam("replay", log, "--json", tmp_path / "replay.json")
    assert again.exit_code == 0 and "identical, bit for bit" in again.output
    with open(log, "rb") as f:
        recorded = sum(1 for _ in make_reader(f).iter_messages(topics=["fast/step"]))
    assert json.loads((tmp_path / "replay.json").read_text())["steps"] == recorded > report["fast_hz"]


def test_a_slower_stage_is_worse_than_the_run_before(bench, bundle, tmp_path):
    drive = ["profile", "--bundle", bundle, "--robot", bench.robot_file, "--task", TASK, "--seconds", 1.5]
    before = tmp_path / "before.json"
    rates = {"fast_hz": 50.0, "slow_hz": 8.0, "deadline_misses": 0, "ticks": 75}
    quick = {"fast.engine": {"p50_ms": 1.0, "p99_ms": 1.5}}
    before.write_text(json.dumps({**rates, "stages": quick}))
    slow = ["--inject", "fast.engine=8", "--inject", "slow.world_model=130", "--json", tmp_path / "now.json"]
    done = harmowam(*drive, *slow, "--against", before)
    assert done.exit_code == 1 and "verdict: worse" in done.output and "fast.engine p50" in done.output
    found = json.loads((tmp_path / "now.json").read_text())["advice"]
    listed = [f"{k}. {a['binds']}\n   gain: {a['gain']}\n   next: {a['command']}\n" for k, a in enumerate(found, 1)]
    assert listed and "".join(listed) in done.output


ROW = {"p50_ms": 1.0, "p99_ms": 1.5}
REPORT = {
    "fast_hz": 50.0,
    "slow_hz": 8.0,
    "deadline_misses": 0,
    "ticks": 75,
    "stages": {"fast.engine": ROW},
    "prior_age_ms": {"p50": 1.0, "p99": 2.0},
}


def against(path):
    """What `profile` says of an older report; a whole one is followed by the robot file, which is not there."""
    done = harmowam("profile", "--robot", path.parent / "none.toml", "--against", path)
    assert done.exit_code == 2 and "Traceback" not in done.output and len(done.stderr.splitlines()) == 1
    return done.stderr


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        ({"slow_hz": None}, "'slow_hz' must be a number from 0 to"),
        ({"slow_hz": float("nan")}, "'slow_hz' must be a finite number, not nan"),
        ({"deadline_misses": -1}, "'deadline_misses' must be a whole number from 0 to"),
        ({"ticks": 10**400}, "'ticks' is a whole number of more than 64 bits"),
        ({"stages": [1]}, "'stages' must be a table"),
        ({"stages": {"fast.engine": {"p50_ms": 1.0}}}, "'stages.fast.engine.p99_ms' is missing"),
        ({"stages": {"fast.engine": {**ROW, "p99_ms": float("inf")}}}, "p99_ms' must be a finite number, not inf"),
        ({"prior_age_ms": 7}, "'prior_age_ms' must be a table of keys, not 7"),
    ],
)
def test_a_profile_that_cannot_be_compared_is_refused_before_the_arm_moves(spoil, what, tmp_path):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(REPORT))
    assert "none.toml" in against(path)
    path.write_text(json.dumps({**REPORT, **spoil}))
    said = against(path)
    assert "is no profile (" in said and what in said


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[" * 100_000, "nested more than 32 deep"),
        ('{"ticks": 1, "ticks": 2}', "'ticks' is given twice"),
        (" " * 5_000_000, "it is larger than 4096 KiB"),
        ("7", "it must be a table of keys, not 7"),
        ("{}", "'fast_hz' is missing"),
    ],
    ids=["deep", "twice", "large", "number", "empty"],
)
def test_what_is_no_profile_is_refused_before_the_arm_moves(text, what, tmp_path):
    (tmp_path / "profile.json").write_text(text)
    assert what in against(tmp_path / "profile.json")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["profile", "--against", "none.json"], "is no profile"),
        (["profile", "--robot", "so101", "--fps", "100"], "are for a simulated robot"),
        (["run", "--robot", "so101", "--fps", "100"], "are for a simulated robot"),
        (["replay", "none.mcap"], "cannot be read"),
        (["doctor", "--robot", "none.toml"], "cannot be read"),
    ],
)
def test_what_the_user_can_mend_is_refused_in_one_sentence(args, words):
    result = harmowam(*args)
    assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.output


def test_without_rerun_a_view_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rerun", None)
    result = harmowam("replay", tmp_path / "run.mcap", "--view")
    assert result.exit_code == 2 and not result.stdout
    assert result.stderr == "error: rerun is not installed: run `pip install 'harmowam-edge[view]'`.\n"


def test_a_stage_that_the_policy_has_not_is_refused_with_those_that_it_has(bundle):
    for item in ("warp=9", "slow.chunk=9", "fast.engine=x", "fast.period_error=1"):
        result = harmowam("profile", "--bundle", bundle, "--inject", item)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
        assert (
            f"--inject {item} is not understood: write STAGE=MS with one of fast.take, slow.preprocess" in result.stderr
        )


@pytest.mark.parametrize("option", ["--fps", "--camera-fps"])
@pytest.mark.parametrize("rate", ["0", "-1", "1e9", "inf", "nan"])
def test_a_rate_that_no_camera_has_is_refused_before_anything_starts(option, rate, monkeypatch):
    monkeypatch.setattr("harmowam.live.live", lambda *_, **__: pytest.fail("it started"))
    result = harmowam("profile", option, rate)
    assert result.exit_code == 2 and option in result.stderr and "Traceback" not in result.output


def test_the_doctor_says_what_to_type(tmp_path):
    done = harmowam("doctor", "--robot", "so101", "--json", tmp_path / "d.json")
    assert done.exit_code == 1 and "mend: " in done.output
    assert json.loads((tmp_path / "d.json").read_text())["bad"] >= 1
