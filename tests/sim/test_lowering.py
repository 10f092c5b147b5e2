"""Real lowerings: motor loop, servo packets and physics, in virtual time. `python -m benchmarks.lowering` plays two
hundred."""

import dataclasses

import pytest

from benchmarks.lowering import REST_M, Result, lowered, table
from firmware_bridge.motion.safety import lowering_s
from runtime.robot import load_robot

# Seeds of the benchmark. On a straight way to rest, the gripper would be dragged over the table: a fault, or the item
# is left behind.
STARTS = [
    ("sunk", 21),
    ("sunk", 31),
    ("sunk", 41),
    ("low", 40),
    ("low", 104),
    ("on top", 7),
    ("anywhere", 133),
    ("held", 2),
    ("held", 9),
]


@pytest.fixture(scope="module", params=STARTS, ids=lambda start: f"{start[0]} {start[1]}".replace(" ", "-"))
def result(request):
    kind, seed = request.param
    return lowered((seed, kind))


def test_it_comes_to_rest_without_a_fault(result):
    assert result.fault == "" and result.at_rest


def test_it_comes_no_nearer_to_the_table_than_it_was_or_has_to_be_at_rest(result):
    assert result.lowest_m > min(result.start_m, REST_M) - 0.002


def test_what_it_holds_it_still_holds_at_rest(result):
    assert result.kept == (True if result.kind == "held" else None)


def test_it_takes_no_longer_than_callers_wait(result):
    assert result.seconds < lowering_s(load_robot("sim_so101").arm)


def test_the_table_counts_what_came_to_rest_and_what_did_not():
    def made(seed, kind, **what):
        start = Result(seed, kind, (0.0,) * 6, 0.02, 0.02, 0.01, "", None, 5.0)
        return dataclasses.replace(start, **what)

    fault = made(1, "low", fault="wrist_flex is blocked", lowest_m=0.002, off_rad=0.5, seconds=3.0)
    rows = table([made(0, "low"), fault, made(2, "held", kept=True), made(3, "held", kept=False)]).splitlines()
    assert rows[2] == f"| low | 2 | 1 | 1 | - | {1000 * (REST_M - 0.002):.0f} | 4.0 (5.0) |"
    assert rows[3] == "| held | 2 | 2 | 0 | 2 / 1 | 0 | 5.0 (5.0) |"
    assert rows[-1].startswith("| all | 4 | 3 | 1 | 2 / 1 |")
