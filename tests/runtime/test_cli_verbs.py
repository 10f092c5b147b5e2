"""profile, replay and doctor from the command line: figures, files, verdicts, refusals."""

import json

import pytest
from click.testing import CliRunner
from mcap.reader import make_reader

from harmowam.cli import main
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
    done = harmowam(*drive, "--inject", "fast.engine=8", "--against", before)
    assert done.exit_code == 1 and "verdict: worse" in done.output and "fast.engine p50" in done.output


@pytest.mark.parametrize("spoil", ["slow_hz", "deadline_misses", "stages", "prior_age_ms"])
def test_a_profile_that_cannot_be_compared_is_refused_before_the_arm_moves(spoil, tmp_path):
    row = {"p50_ms": 1.0, "p99_ms": 1.5}
    whole = {
        "fast_hz": 50.0, "slow_hz": 8.0, "deadline_misses": 0, "ticks": 75, "stages": {"fast.engine": row},
        "prior_age_ms": {"p50": 1.0, "p99": 2.0},
    }  # fmt: skip
    bad = {"stages": {"fast.engine": {"p50_ms": 1.0}}, "prior_age_ms": 7}
    spoilt = {**whole, spoil: bad[spoil]} if spoil in bad else {k: v for k, v in whole.items() if k != spoil}
    for name, data in (("whole", whole), ("spoilt", spoilt)):
        (tmp_path / name).write_text(json.dumps(data))
        done = harmowam("profile", "--robot", tmp_path / "none.toml", "--against", tmp_path / name)
        assert done.exit_code == 2 and ("is no profile" if name == "spoilt" else "none.toml") in done.stderr


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["profile", "--against", "none.json"], "is no profile"),
        (["profile", "--inject", "warp=9"], "write STAGE=MS with one of fast.take"),
        (["profile", "--robot", "so101", "--fps", "100"], "are for a simulated robot"),
        (["replay", "none.mcap"], "cannot be read"),
        (["doctor", "--robot", "none.toml"], "cannot be read"),
    ],
)
def test_what_the_user_can_mend_is_refused_in_one_sentence(args, words):
    result = harmowam(*args)
    assert result.exit_code == 2 and words in result.stderr and "Traceback" not in result.output


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
