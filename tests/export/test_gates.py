"""A bundle is refused when it differs from FP32, is not faster, or was made from bad observations."""

import copy

import numpy as np
import pytest

from export import plan as plan_module
from export.bundle import export_bundle
from export.gates import ASTRAY_CELLS, ExportError, aims_apart, missed, not_faster, probabilities
from export.observations import observation_feeds
from export.onnx import engines
from export.origin import CHECKPOINT, made_from, samples_path
from export.plan import Plan
from harmowam.export import in_float
from runtime.bundle import Bundle
from runtime.engines.onnx import centred_cosine


def test_the_shipped_checkpoint_passes_every_gate(exported):
    path, report = exported
    assert report["missed"] == [] and "failed" not in Bundle.load(path).manifest.quantization
    weights = [sum(e[k] for e in report["engines"].values()) for k in ("weight_bytes", "fp32_weight_bytes")]
    assert weights[0] <= 0.35 * weights[1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r["engines"]["world_model"]["parity"]["tokens"].update(cosine=0.9899), "cosine of tokens is 0.9899"),
        (lambda r: r["engines"]["predictive"]["parity"]["chunk"].update(cosine=0.994), "cosine of chunk"),
        (lambda r: r["engines"]["predictive"]["parity"]["chunk"].update(cosine=float("nan")), "cosine of chunk"),
        (lambda r: r["engines"]["fast"]["parity"]["gate"].update(flips=0.05), "decisions flip"),
        (
            lambda r: r["engines"]["fast"]["parity"]["heat"].update(aim_p99=0.6),
            "1 % of the aims are 4.2 mm apart or more, 3.5 mm are allowed",
        ),
        (
            lambda r: r["engines"]["fast"]["parity"]["heat"].update(astray=0.05),
            "5.0% of the aims mean another thing (21 mm away or more), 2% may",
        ),
        (
            lambda r: r["joints_deg"].update(max=9.0),
            "the worst joint goals are 9.00 degrees apart or more, 5.0 degrees are allowed",
        ),
    ],
)
def test_each_gate_catches_the_error_that_it_is_for(exported, change, says):
    report = copy.deepcopy(exported[1])
    change(report)
    assert [says in m for m in missed(report)] == [True]


def test_heat_maps_are_compared_by_where_they_aim():
    """The depth of cells that are never aimed at does not count; a peak that moves, or means another thing, is
    reported."""
    rows, columns = np.mgrid[:48, :48]

    def maps(column, floor):
        spot = -((columns - column) ** 2 + (rows - 20) ** 2) / 2.0
        return np.stack([np.maximum(spot + i, floor).ravel() for i in range(4)])

    assert np.allclose(probabilities(maps(30, -100.0)), probabilities(maps(30, -9000.0)))
    assert np.allclose(aims_apart(maps(30, -100.0), maps(30.4, -100.0)), 0.4, atol=0.05)
    assert (aims_apart(maps(30, -100.0), maps(10, -100.0)) > ASTRAY_CELLS).all()


@pytest.mark.usefixtures("export_once")
def test_a_missed_gate_writes_nothing_and_force_marks_the_bundle(untrained, tmp_path, monkeypatch, caplog):
    """A real export of two engines."""
    monkeypatch.setattr("export.gates.JOINT_MAX_DEG", -1.0)  # a bound that no model keeps
    two = ("world_model", "predictive")
    monkeypatch.setattr(plan_module, "engines", lambda model: {k: ENGINES(model)[k] for k in two})
    out, plan = tmp_path / "b.bundle", Plan(checkpoint=untrained, precision="fp32")
    with pytest.raises(ExportError, match="nothing was written"):
        export_bundle(plan, out)
    assert list(tmp_path.iterdir()) == []
    report = export_bundle(plan, out, force=True)
    assert any("degrees apart" in m for m in report["missed"])
    assert Bundle.load(out).manifest.quantization["origin"] == plan.origin() and not made_from(out, plan.origin())
    assert Bundle.load(out).manifest.quantization["failed"]
    assert "FAILED the gates" in caplog.text


@pytest.mark.usefixtures("export_once")
def test_engines_that_are_not_faster_in_int8_are_shipped_in_float(untrained, tmp_path, monkeypatch):
    """A real export of two engines, on a processor where INT8 costs time."""
    monkeypatch.setattr("export.gates.SLOWEST", float("inf"))  # a bound that no engine keeps
    two = ("world_model", "predictive")
    monkeypatch.setattr(plan_module, "engines", lambda model: {k: ENGINES(model)[k] for k in two})
    out = tmp_path / "b.bundle"
    report = export_bundle(Plan(checkpoint=untrained), out, force=True)  # cosines of an untrained model say nothing
    assert tuple(report["float"]) == two and report["joints_deg"]["max"] == 0
    assert all(row["weight_bytes"] == row["fp32_weight_bytes"] for row in report["engines"].values())
    assert Bundle.load(out).manifest.quantization["format"] == "fp32"
    assert not any("INT8" in line for line in report["missed"])


def times(**engines):
    """Rows of a report: milliseconds in INT8 and in FP32."""
    return {
        n: {"int8_layers": 3, "time": {"ms": a, "fp32_ms": b, "speedup": round(b / a, 3)}}
        for n, (a, b) in engines.items()
    }


@pytest.mark.parametrize(
    ("rows", "left"),
    [
        (times(world_model=(8, 16), predictive=(2.7, 3.3), fast=(1.8, 2.6), decoder=(1, 2)), []),
        (times(world_model=(8, 16), predictive=(3.5, 3.3), fast=(1.8, 2.6)), []),  # may be noise, and all are faster
        (times(world_model=(8, 16), predictive=(4, 3.3), fast=(1.8, 2.6)), ["predictive"]),
        (times(world_model=(16.5, 16), predictive=(3.3, 3.3), fast=(2.5, 2.6)), ["world_model", "predictive"]),
        (
            times(world_model=(20, 16), predictive=(4, 3.3), fast=(4, 2.6), decoder=(1, 2)),
            ["world_model", "predictive", "fast"],
        ),
        ({"fast": {"time": {"ms": 2.6, "fp32_ms": 2.6, "speedup": 1.0}}}, []),  # it has no INT8 layers
    ],
    ids=["all", "hardly", "one", "together", "none", "float"],
)
def test_an_engine_is_in_float_where_int8_brings_no_speed(rows, left):
    assert not_faster(rows) == left


def test_one_line_says_which_engines_are_in_float():
    slow = {"predictive": {"ms": 4.0, "fp32_ms": 3.3}, "fast": {"ms": 2.71, "fp32_ms": 2.6}}
    assert in_float(slow) == (
        "shipped in float, for INT8 is not faster on this processor: predictive 4.00 ms, in float 3.30, "
        "fast 2.71 ms, in float 2.60"
    )


ENGINES = engines


def _samples(tmp_path, **changes):
    with np.load(samples_path(CHECKPOINT)) as raw:
        arrays = {k: raw[k] for k in raw.files}
    arrays.update({k: f(arrays[k]) for k, f in changes.items()})
    np.savez(tmp_path / "s.npz", **arrays)
    return tmp_path / "s.npz"


def test_observations_that_are_not_numbers_are_refused(tmp_path):
    def spoil(pose):
        pose = pose.copy()
        pose[3, 1] = np.nan
        return pose

    with pytest.raises(ExportError, match=r"'pose' .* not finite"):
        observation_feeds(_samples(tmp_path, pose=spoil), {})


def test_too_few_observations_are_refused(tmp_path):
    few = _samples(tmp_path, **dict.fromkeys(("front", "wrist", "pose", "instruction"), lambda a: a[:31]))
    with pytest.raises(ExportError, match="holds 31 observations, 32 are the least"):
        observation_feeds(few, {})


def test_cosine_sees_noise_that_a_shared_offset_hides():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(50, 4))
    b = a + rng.normal(size=a.shape)
    plain = float(((a + 100) * (b + 100)).sum() / np.linalg.norm(a + 100) / np.linalg.norm(b + 100))
    assert plain > 0.999 and centred_cosine(a + 100, b + 100) < 0.8
