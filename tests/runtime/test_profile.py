"""What stamps say: percentiles, comparison with a verdict, a page; and delay compensation."""

import copy

import numpy as np
import pytest

from firmware_bridge.motion.messages import Command, JointState
from harmowam.profile import print_timing
from runtime.loop.delay import MOST_RAD, Lead, roll_forward
from runtime.observe.profile import STAGES, board, compare, processor_shares, processor_ticks
from runtime.observe.profile_page import page, timeline, worst_instant
from runtime.observe.trace import percentiles, summary

ZERO = np.zeros(6, np.float32)
MS = 1_000_000


def report(scale=1.0, misses=0, fast=50.0):
    rng = np.random.default_rng(1)
    series = {s: rng.gamma(4.0, 0.5 * scale, 500) for s in STAGES}
    stages = {s: {**row, "budget_ms": 20.0} for s, row in summary(series).items()}
    rows = percentiles(rng.gamma(4.0, 3.0 * scale, 500))
    return {
        "seconds": 10.0,
        "fast_hz": fast,
        "repeat_hz": 0.0,
        "slow_hz": 8.0,
        "ticks": 500,
        "deadline_misses": misses,
        "prior_age_ms": rows,
        "observation_to_wire_ms": rows,
        "overhead_ms": rows,
        "period_error_ms": rows,
        "stages": stages,
        "goal_jerk_rad_s3": {"rms": 1.0, "max": 2.0},
        "health": {"state": "running", "changes": []},
        "advice": [],
    }


def test_percentiles_of_a_known_series():
    rows = percentiles(np.arange(1001))
    assert rows == {"p50": 500.0, "p90": 900.0, "p99": 990.0, "p999": 999.0, "max": 1000.0}
    assert percentiles([]) == {"p50": 0.0, "p90": 0.0, "p99": 0.0, "p999": 0.0, "max": 0.0}


@pytest.mark.parametrize(
    ("now", "verdict", "names"),
    [
        (report(), "same", []),
        (report(scale=1.1), "same", []),
        (report(scale=1.6), "worse", ["fast.engine p50"]),
        (report(scale=0.5), "better", []),
        (report(misses=2), "worse", ["deadline misses"]),
        (report(fast=40.0), "worse", ["fast_hz"]),
    ],
)
def test_two_runs_are_compared_with_a_verdict(now, verdict, names):
    found = compare(now, report())
    assert found["verdict"] == verdict and set(names) <= set(found["worse"])


def test_a_stage_that_one_run_lacks_is_left_out():
    before = copy.deepcopy(report())
    del before["stages"]["fast.engine"]
    assert not any(r["name"].startswith("fast.engine") for r in compare(report(), before)["rows"])


def test_time_that_the_host_took_away_is_told_from_our_own(tmp_path):
    """/proc/stat of proc(5): user nice system idle iowait irq softirq steal guest guest_nice."""
    before, after = tmp_path / "before", tmp_path / "after"
    before.write_text("cpu  100 10 50 1000 20 5 5 30 7 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n")
    after.write_text("cpu  150 10 60 1030 20 5 5 40 9 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n")
    shares = processor_shares(processor_ticks(before), processor_ticks(after))
    assert shares == {"busy": 0.6, "stolen": 0.1}


def test_the_page_shows_stages_timeline_and_comparison():
    starts = np.arange(50) * 20 * MS
    spans = {
        "fast loop": {
            s: np.stack([starts + k * MS, np.full(50, MS)])
            for k, s in enumerate(s for s in STAGES if s.startswith("fast"))
        },
        "slow loop": {s: np.stack([starts, np.full(50, MS)]) for s in STAGES if s.startswith("slow")},
        "motor process": {s: np.stack([starts, np.full(50, MS)]) for s in STAGES if s.startswith("motor")},
        "age: wire": {s: np.stack([starts, np.full(50, MS)]) for s in ("wire", "observation.age")},
    }
    spans["fast loop"]["fast.slot"][1, 30] = 15 * MS
    assert abs(worst_instant(spans) - starts[30]) < 20 * MS
    assert 'x="110.00"' in timeline(spans, 20 * MS, {})  # nothing is empty before the first tick
    text = page(report(), spans, compare(report(1.6), report()))
    assert (
        all(s in text for s in STAGES)
        and "Against the other run: worse" in text
        and text.count("<svg") == len(STAGES) + 1
    )
    assert "Every budget is kept." in text
    told = {**report(), "advice": [{"binds": "slow & late", "gain": "at most 5.0 ms", "command": "harmowam build b"}]}
    text = page(told, spans)
    assert "<li>slow &amp; late<br>gain: at most 5.0 ms<br><code>harmowam build b</code></li>" in text
    assert "Every budget is kept." not in text
    assert "<script" not in text and timeline({}, 0, {}).startswith("<svg")
    assert "from a picture&#x27;s capture to its command on the bus" in text and "Task:" not in text
    known = {"cores": 2, "cpu_mhz": 2400, "temperature_c": {"soc": 45.5, "gpu": 50.0}, "temperature_before_c": {}}
    text = page({**report(), "board": known, "processors": {"busy": 0.5}}, spans)
    assert "cores 2; cpu 2400 MHz; temperature soc 45.5, gpu 50.0 °C; processors busy 50.0%</p>" in text


def test_the_page_says_the_task_and_where_somebody_judged_it_whether_it_was_done():
    asked = {**report(), "stages": {}, "task": "put <it> there"}
    assert "<br>Task: put &lt;it&gt; there</p>" in page(asked, {"fast loop": {}})
    done = {**asked, "success": True, "success_at_end": True, "said_done": True}
    assert "<br>Task: put &lt;it&gt; there: done, and the policy said so</p>" in page(done, {"fast loop": {}})


def test_the_terminal_says_in_plain_words_how_it_went_and_whether_the_task_was_done(capsys):
    ended = {"success": True, "success_at_end": True, "task": "stack them", "motor_missed_ticks": 1}
    told = {"time_to_first_command_s": 1.5, "rss_mb": 300.0, "processors": {"busy": 0.5, "stolen": 0.0}}
    changes = [{"at_s": 0.1, "state": "running", "reasons": []}]
    print_timing({**report(misses=3), **ended, **told, "health": {"state": "running", "changes": changes}})
    said = capsys.readouterr().out
    assert "slow loop 8.0 Hz; 3 of 500 fast steps were late, the motor process left out 1 step\n" in said
    assert "state at the end: running, after 1 change of state; jerk of the joint goals 1 rad/s^3" in said
    assert "prior age: how old the pictures behind the slow loop's plan (Prior) are when it is used\n" in said
    assert said.endswith("\ntask: stack them: done\n")


def test_the_board_is_described_without_root():
    assert board()["cores"] >= 1 and board()["model"]


def state(goal=ZERO, q=ZERO, number=0, wire_ns=0):
    return JointState(
        0, q, ZERO, goal, ZERO, ZERO, ZERO, np.zeros(6, np.uint8), t_wire_ns=wire_ns, command_number=number
    )


def test_the_state_is_rolled_forward_by_the_commands_in_flight():
    q = np.full(6, 0.5, np.float32)
    assert np.array_equal(roll_forward(state(q=q), None, 0), q)
    flying = Command(0, 75 * MS, ZERO + 0.06, ZERO + 1.0)
    assert roll_forward(state(goal=ZERO + 0.05, q=q), flying, 20 * MS) == pytest.approx(0.5 + 0.01 + 0.02, abs=1e-6)
    far = Command(0, 75 * MS, ZERO + 2.0, ZERO)
    assert roll_forward(state(q=q), far, 0) == pytest.approx(0.5 + MOST_RAD)
    assert np.array_equal(roll_forward(state(q=q), far, 80 * MS), q)  # it has expired


def test_the_lead_settles_at_the_median_delay_and_ignores_outliers():
    lead, rng = Lead(), np.random.default_rng(0)
    for k in range(1, 400):
        delay = 400 * MS if k % 20 == 0 else int(rng.normal(8, 1) * MS)
        lead.see(state(number=k, wire_ns=k * 20 * MS + delay), k * 20 * MS)
        lead.see(state(number=k, wire_ns=k * 20 * MS + delay), k * 20 * MS)  # each counts once
    assert lead.ns == pytest.approx(8 * MS, abs=1.5 * MS)
