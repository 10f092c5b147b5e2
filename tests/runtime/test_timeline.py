"""What a page says of a recorded run: its events on one time axis, what identifies it, and how to run it again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from firmware_bridge.arms import FAMILIES
from firmware_bridge.motion.messages import Expert
from runtime.bundle import Bundle
from runtime.observe.again import again
from runtime.observe.episode import Episode
from runtime.observe.profile import STAGES
from runtime.observe.report import in_order, kept_time, write_report
from runtime.observe.timeline import began_ns, events, figure
from runtime.robot import SHIPPED
from tests.runtime.test_report import recorded
from tests.tiny import tiny_chunk_bundle

ARM = FAMILIES["so101"]
S = 1_000_000_000
NONE, REACTIVE, PREDICTIVE, PLAN = Expert.NONE, Expert.REACTIVE, Expert.PREDICTIVE, Expert.PLAN
ROW = {"p50_ms": 1.0, "p99_ms": 2.0, "max_ms": 3.0, "budget_ms": 20.0}
SPREAD = {"p50": 1.0, "p99": 2.0, "max": 3.0}
RUN = {
    "task": "put the red cube on the plate",
    "robot": "simulated SO-101",
    "quantization": "int8",
    "engine": "onnxruntime",
    "policy": "gated",
    "kind": "harmowam",
    "bundle": "tiny",
    "began_s": 1.0,
    "seconds": 1.0,
    "ticks": 10,
    "deadline_misses": 0,
    "fast_hz": 10.0,
    "slow_hz": 8.0,
    "held_s": 0.0,
    "refused_outputs": 0,
    "commanded": True,
    "time_to_first_command_s": 0.1,
    "observation_to_wire_ms": SPREAD,
    "prior_age_ms": SPREAD,
    "health": {"changes": [{"at_s": 0.0, "state": "running", "reasons": []}]},
    "stages": {"wire": ROW, "fast.take": ROW},
    "log": {"dropped": 0},
    "success": True,
    "success_after_s": 0.75,
    "success_at_end": True,
}


def driven(experts, jaw):
    """A run of ten steps a second that began at 1 s, whose first step, at 1.1 s, gives no command."""
    n = len(experts)
    t = S + S // 10 * np.arange(1, n + 1, dtype=np.int64)
    command = np.zeros((n, 6), np.float32)
    command[:, -1] = jaw
    command[0] = np.nan
    return Episode(t, t, command, np.ones(n, np.float32), np.array(experts, np.uint8), t, command, np.zeros(0), ())


def test_the_events_of_a_run_count_from_its_start_in_order():
    """The jaw passes from one end of its span to the other; half-way it does neither."""
    episode = driven([NONE, REACTIVE, PREDICTIVE, PREDICTIVE, REACTIVE, REACTIVE], [0, 0.6, 0.6, 0.3, 0.0, 0.6])
    assert [(round(at, 2), what) for at, what in events(episode, RUN)] == [
        (0.0, "start"),
        (0.2, "first command"),
        (0.2, "reactive expert takes over"),
        (0.3, "predictive expert takes over"),
        (0.5, "reactive expert takes over"),
        (0.5, "gripper closes"),
        (0.6, "gripper opens"),
        (0.75, "task solved"),
        (1.0, "end"),
    ]


def test_a_hold_is_an_event_and_a_task_that_was_not_solved_is_none():
    held = {"at_s": 0.3, "state": "holding", "reasons": ["no picture"]}
    run = {**RUN, "success": False, "health": {"changes": [*RUN["health"]["changes"], held]}}
    found = events(driven([NONE, PLAN, PLAN], 0.5), run)
    assert [(round(at, 2), what) for at, what in found[1:]] == [
        (0.2, "first command"),
        (0.4, "holding (no picture)"),  # health counts from the first step
        (1.0, "end"),
    ]


def test_a_report_of_another_run_does_not_move_the_time_axis():
    assert began_ns(driven([NONE, PLAN], 0.0), {"began_s": 1000.0}) == S + S // 10


def test_only_a_policy_with_a_gate_has_an_axis_for_it_and_a_step_without_a_command_has_no_height():
    """The height is that of the commanded joints, so it is there for a policy that plans in joint angles, too."""
    for experts, axes in (([NONE, PLAN, PLAN], 2), ([NONE, REACTIVE, PREDICTIVE], 3)):
        drawn = figure(driven(experts, 0.5), RUN, ARM)
        names = [ax.get_ylabel() for ax in drawn.axes]
        assert names == ["P(interaction)", "tool height, mm", "jaw, degrees"][-axes:]
        height = drawn.axes[-2].get_lines()[0].get_ydata()
        at_zero = ARM.forward(np.array([0, 0, 0, 0, 0, 0.5]))[2] * 1000
        assert np.isnan(height[0]) and height[1:] == pytest.approx([at_zero] * 2)


def test_stages_stand_in_the_order_of_the_pipeline_with_their_words():
    rows = in_order({"wire": ROW, "mine": ROW, "fast.take": ROW, "observation.age": ROW})
    assert [name for name, _, _ in rows] == ["observation.age", "fast.take", "wire", "mine"]
    assert [words for _, words, _ in rows] == [STAGES["observation.age"], STAGES["fast.take"], STAGES["wire"], "mine"]


def test_physics_that_fell_behind_the_clock_is_named():
    clocks = {"simulated_s": 4.0, "wall_s": 4.0, "late_s": 0.02}
    assert kept_time({"physics": clocks}) == "yes: 4.00 s simulated in 4.00 s by the clock, 0.5% of it late"
    assert kept_time({"physics": {**clocks, "late_s": 0.2}}).startswith("no: ")
    assert kept_time({"physics": {**clocks, "simulated_s": 3.5}}).startswith("no: 3.50 s simulated in 4.00 s")
    assert kept_time({"success": True}) == "not recorded" and kept_time({}) == ""


def test_the_command_to_run_again_names_a_shipped_robot_or_a_file_and_only_what_was_given(tmp_path):
    shipped = (SHIPPED / "sim_so101.toml").read_text()
    config = {"task": "it's a ring", "seconds": 20.0, "seed": 3, "policy": "gated", "engine": "cpu", "fast_hz": 50.0}
    config |= {"robot_file": shipped, "robot_path": "elsewhere/sim_so101.toml", "faults": ["stall@1"], "port": None}
    words = "harmowam run --bundle b --robot {} --task 'it'\"'\"'s a ring' --seconds 20 --seed 3 --policy gated "
    words += "--engine cpu{} --fault stall@1"
    assert again(config, Path("b")) == words.format("sim_so101", "")
    assert again({**config, "fast_hz": 100.0}, Path("b")) == words.format("sim_so101", " --fps 100")
    drawn = again({**config, "task_drawn": True}, Path("b"))
    assert "--task" not in drawn and "--seed 3" in drawn  # with a task, the seed draws another start
    changed = {**config, "robot_file": shipped + "# mine", "port": "/dev/arm"}
    assert again(changed, Path("b")) == words.format("elsewhere/sim_so101.toml", " --port /dev/arm")


def test_the_page_tells_what_identifies_the_run_and_how_to_run_it_again(tmp_path):
    recorded(tmp_path / "run.mcap", ticks=10)
    config = {"seed": 3, "bundle_sha256": "5ha", "robot_file": (SHIPPED / "sim_so101.toml").read_text()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_report(tiny_chunk_bundle(tmp_path / "bundle", np.zeros((4, 6), np.float32)), tmp_path, RUN)
    page = (tmp_path / "report.html").read_text()
    for said in ("<td>seed of the start</td><td>3</td>", "<td>5ha</td>", "--robot sim_so101 --seed 3</pre>"):
        assert said in page.replace("<span>", "").replace("</span>", "")
    assert "<b>0.75 s</b> task solved" in page and page.index(STAGES["fast.take"]) < page.index(STAGES["wire"])


def test_the_page_is_of_the_bundle_that_was_loaded_for_the_run_whatever_lies_there_by_then(tmp_path):
    recorded(tmp_path / "run.mcap", ticks=10)
    (tmp_path / "config.json").write_text('{"seed": 3}')
    lies = tiny_chunk_bundle(tmp_path / "bundle", np.zeros((4, 6), np.float32))
    ran = Bundle.load(lies)
    shutil.rmtree(lies)
    write_report(ran, tmp_path, RUN)
    assert f"--bundle {lies}" in (tmp_path / "report.html").read_text().replace("<span>", "")
