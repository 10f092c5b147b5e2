"""`harmowam bundle` and `harmowam tasks`: what a bundle is, said to people and to programs."""

import json
import math

import pytest

from tests.command import harmowam, refusal
from tests.tiny import JOINTS, TASK, edit_manifest, tiny_bundle


@pytest.fixture
def bundle(tmp_path):
    return tiny_bundle(tmp_path)


def test_show_says_what_a_bundle_is(bundle, tmp_path):
    done = harmowam("bundle", "show", bundle, "--json", tmp_path / "b.json")
    assert done.exit_code == 0, done.output
    manifest, facts = json.loads((bundle / "manifest.json").read_text()), json.loads((tmp_path / "b.json").read_text())
    assert (facts["name"], facts["kind"], facts["arm_family"]) == ("tiny", "harmowam", "so101")
    assert facts["digest"] == manifest["digest"] and facts["quantization"] == {"format": "fp32"}
    engines = {e["name"]: e for e in facts["engines"]}
    assert engines["fast"]["bytes"] == (bundle / "onnx/fast.onnx").stat().st_size
    assert engines["fast"]["inputs"]["front"] == [1, 3, 96, 96] and engines["fast"]["outputs"] == [
        "heat",
        "reach",
        "gate",
    ]
    assert {"name": "front", "width": 96, "height": 96} in facts["cameras"]
    assert tuple(j["name"] for j in facts["joints"]) == JOINTS
    assert all(math.isclose(j["upper_deg"], math.degrees(j["upper"]), abs_tol=0.01) for j in facts["joints"])
    for words in ("so101", facts["digest"], "fast, ", "front, 96 x 96", "elbow_flex", TASK, "fp32"):
        assert words in done.output


def test_show_tells_a_bundle_that_failed_its_gates(bundle):
    edit_manifest(
        bundle, lambda m: m.update(quantization={"format": "int8 qdq", "target": "tensorrt", "failed": ["heat"]})
    )
    assert "int8 qdq for tensorrt, FAILED the gates" in harmowam("bundle", "show", bundle).output


def test_a_bundle_that_is_not_there_is_refused_without_an_option_that_show_does_not_have(tmp_path):
    said = refusal("bundle", "show", tmp_path / "nope")
    assert "nope is not a bundle (no manifest.json): name another bundle, or make" in said and "--bundle" not in said


def test_a_bundle_does_not_write_to_the_terminal(bundle):
    """Its texts are somebody else's, and most of them are free."""
    edit_manifest(bundle, lambda m: m["quantization"].update(format="fp32\x1b[2J"))
    edit_manifest(bundle, lambda m: m.update(tasks={"take \x9b2J it": [0.1] * 32}))
    for verb in (("bundle", "show"), ("tasks",)):
        done = harmowam(*verb, bundle)
        assert done.exit_code == 0 and all(line.isprintable() for line in done.output.splitlines())
        assert "take \\x9b2J it" in done.output


def test_tasks_are_numbered_one_a_line(bundle, tmp_path):
    done = harmowam("tasks", bundle, "--json", tmp_path / "t.json")
    assert done.output.splitlines() == ["  1  put the blue cube on the plate", f"  2  {TASK}"]
    rows = json.loads((tmp_path / "t.json").read_text())["tasks"]
    assert rows == [{"number": 1, "task": "put the blue cube on the plate"}, {"number": 2, "task": TASK}]


@pytest.mark.parametrize("verb", [("bundle", "show"), ("tasks",)])
def test_a_damaged_bundle_is_not_described(bundle, verb):
    (bundle / "onnx/fast.onnx").write_bytes(b"x")
    assert "does not match its hash: copy it again" in refusal(*verb, bundle)
