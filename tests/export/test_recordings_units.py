"""What the joint values of other people's recordings mean: degrees, radians, normalised ranges, the makers' zeros."""

import json
from pathlib import Path

import numpy as np
import pytest

from export.recordings import How, examine, read
from firmware_bridge.arms.so101 import FAMILY as so101
from tests.recordings import (
    OLD,
    POSITIONS,
    RANGES,
    Spec,
    edit_rows,
    like,
    said,
    smooth,
    write,
)

PLAIN = Spec()
DATA_2 = "data/chunk-000/episode_000000.parquet"


def test_normalised_values_are_not_taken_for_degrees(tmp_path):
    folder = write(tmp_path / "set", like(PLAIN, told="normalised"))
    found = examine(folder, How(units="degrees"))
    assert not found.accepted and "give --units normalised or leave it out" in said(found, "units")


def test_the_ranges_of_normalised_joints_come_from_the_servos_steps(tmp_path):
    found = examine(write(tmp_path / "set", like(PLAIN, told="normalised")))
    span = found.units.span_deg
    assert span is not None and np.allclose(span, RANGES * 360 / 4096) and found.units.span_sd_deg == 0
    assert "2703, 2389, 2211, 2345, 3979 steps" in found.units.evidence


def lerobot_file(path: Path, ranges: np.ndarray) -> Path:
    rows = {
        n: {"id": k + 1, "drive_mode": 0, "homing_offset": 0, "range_min": 20, "range_max": 20 + int(r)}
        for k, (n, r) in enumerate(zip(POSITIONS, [*ranges, 1200]))
    }
    path.write_text(json.dumps(rows))
    return path


def test_one_joint_that_was_edited_does_not_hide_the_units(copy):
    edit_rows(copy / DATA_2, "observation.state", lambda rows: [[*r[:3], r[3] + 7.013, *r[4:]] for r in rows])
    found = examine(copy)
    assert found.accepted and "steps of 1/4096 turn in degrees" in found.units.evidence


def test_a_calibration_file_gives_the_ranges_or_is_refused_as_another_arms(tmp_path):
    folder = write(tmp_path / "set", like(PLAIN, told="normalised"))
    mine, other = lerobot_file(tmp_path / "a.json", RANGES), lerobot_file(tmp_path / "b.json", RANGES - 100)
    good = examine(folder, How(units="normalised", joints=mine))
    assert good.accepted and good.units.span_deg is not None
    assert np.allclose(good.units.span_deg, RANGES * 360 / 4096)
    assert "measured positions say 237.6" in said(examine(folder, How(units="normalised", joints=other)), "joints")
    (tmp_path / "list.json").write_text("[1]")
    for wrong, told in (("list.json", "is no lerobot calibration"), ("set", "is no file")):
        assert told in said(examine(folder, How(units="normalised", joints=tmp_path / wrong)), "joints")


def test_units_that_nothing_tells_are_asked_for_and_never_guessed(copy):
    smooth(copy)
    found = examine(copy)
    assert not found.accepted and found.units.joints is None
    assert "add --units degrees, --units rad or --units normalised --joints" in said(found, "units")
    assert examine(copy, How(units="degrees")).accepted
    rough = examine(copy, How(units="normalised"))
    assert rough.accepted and rough.units.span_sd_deg > 5 and "uncertain by about 12 degrees" in said(rough, "joints")


def test_joints_that_stop_at_exactly_100_are_normalised(copy):
    smooth(copy, 4.0)
    found = examine(copy)
    assert found.units.joints == "normalised" and "stop at exactly 100 or -100" in found.units.evidence


def test_degrees_beyond_the_arm_are_refused_with_the_joint(copy):
    for path in copy.rglob("episode_*.parquet"):
        edit_rows(path, "observation.state", lambda rows: [[r[0], r[1], r[2] + 263, *r[3:]] for r in rows])
    found = examine(copy, How(units="degrees"))
    assert not found.accepted and "elbow_flex goes from" in said(found, "limits")


def test_one_episode_beyond_the_arm_is_left_out_alone(copy):
    edit_rows(copy / DATA_2, "action", lambda rows: [[r[0], r[1], 200, *r[3:]] for r in rows])
    found = examine(copy)
    assert found.accepted and [t.number for t in found.takes] == [1] and found.problems[-1].episode == 0


@pytest.mark.parametrize(("scale", "fatal", "text"), [(3.75, True, "the jaw goes from"), (0.01, False, "never passes")])
def test_a_jaw_of_another_scale_is_named(copy, scale, fatal, text):
    for path in copy.rglob("episode_*.parquet"):
        for column in ("observation.state", "action"):
            edit_rows(path, column, lambda rows: [[*r[:5], r[5] * scale] for r in rows])
    found = examine(copy)
    assert text in said(found, "jaw") and found.accepted is not fatal


def test_degrees_of_an_so100_from_before_june_2025_are_turned(tmp_path):
    folder = write(tmp_path / "set", like(PLAIN, robot="so100", names=OLD))
    straight = read(examine(folder), 20.0)[0]
    for path in folder.rglob("episode_*.parquet"):
        for column in ("observation.state", "action"):
            edit_rows(path, column, lambda rows: [[r[0], 90 - r[1] + 20, r[2] + 110, *r[3:]] for r in rows])
    found = examine(folder)
    assert found.units.early and found.accepted
    moved = read(found, 20.0)[0].state - straight.state
    assert np.allclose(moved[:, 1], np.radians(-20), atol=1e-5) and np.allclose(moved[:, 2], np.radians(20), atol=1e-5)


def test_lerobots_numbers_are_the_makers_angles(copy):
    """As in the maker's model: 30 degrees of pan are to the right, 0 of the jaw is shut and 100 wide open."""
    row = [30.0, -20.0, 40.0, 10.0, -60.0]
    for path in copy.rglob("episode_*.parquet"):
        edit_rows(path, "observation.state", lambda rows: [[*row, 0.0]] * len(rows))
        edit_rows(path, "action", lambda rows: [[*row, 100.0]] * len(rows))
    data = read(examine(copy, How(units="degrees")), 20.0)[0]
    assert np.allclose(data.state[0], [*np.radians(row), so101.LOWER[5]], atol=1e-6)
    assert np.allclose(data.action[0], [*np.radians(row), so101.UPPER[5]], atol=1e-6)
    assert so101.heading(so101.forward(data.state[0])) == pytest.approx(-np.radians(30))
