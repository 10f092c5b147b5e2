"""The certificate of an INT8 bundle: its arithmetic, and which bundles it compares."""

import json

import numpy as np
import pytest

from export.certify import LEAST, certify
from export.gates import ExportError
from sim.evaluate import jobs_for
from sim.statistics import paired_lower_bound
from tests.rig import START
from tests.tiny import tiny_chunk_bundle


def test_equal_results_are_not_certain_with_few_pairs_but_are_with_400():
    assert paired_lower_bound(0, 0, 20) < LEAST < paired_lower_bound(0, 0, 400) < 0


def test_the_bound_of_equal_results_has_a_closed_form():
    """Without a pair that differs, the score equation gives z^2 / (n + z^2)."""
    assert paired_lower_bound(0, 0, 400) == pytest.approx(-(1.6449**2) / (400 + 1.6449**2), abs=1e-5)


def test_the_bound_lies_below_the_difference_and_near_the_normal_one():
    bound = paired_lower_bound(20, 24, 400)
    normal = (20 - 24) / 400 - 1.6449 * ((44 - 16 / 400) ** 0.5) / 400
    assert bound < -4 / 400 and bound == pytest.approx(normal, abs=0.003)
    assert paired_lower_bound(10, 30, 400) < LEAST  # five points lost do not pass


def write_rows(path, bundle, won):
    """Rows as if all starts had been played; the first `won` succeeded."""
    path.parent.mkdir(exist_ok=True)
    jobs = jobs_for(bundle, ["chunk"], ["seen"], ["plate"], range(400), split="test")
    with path.open("a") as rows:
        for k, job in enumerate(jobs):
            rows.write(json.dumps({"key": job.key, "success": k < won}) + "\n")


def test_a_policy_of_any_kind_is_certified_against_its_fp32_bundle(tmp_path):
    stay = np.tile(np.array(START), (8, 1))
    fp32 = tiny_chunk_bundle(tmp_path / "fp32", stay)
    int8 = tiny_chunk_bundle(tmp_path / "int8", stay, quantization={"format": "int8 qdq"})
    rows = int8 / "reports" / "certify.jsonl"
    write_rows(rows, int8, 300)
    write_rows(rows, fp32, 302)
    result = certify(fp32, int8, 400)
    assert (result["int8_successes"], result["fp32_successes"], result["passed"]) == (300, 302, True)
    assert json.loads((int8 / "reports" / "certificate.json").read_text()) == result
    with pytest.raises(ExportError, match="is not FP32: name the checkpoint, or the FP32 bundle"):
        certify(int8, int8, 400)
    other = tiny_chunk_bundle(tmp_path / "other", stay, dt_ms=40)
    with pytest.raises(ExportError, match="was not made from this checkpoint"):
        certify(other, int8, 400)


def test_an_engine_that_nvidias_builder_faults_is_not_certified(tmp_path):
    stay = np.tile(np.array(START), (8, 1))
    recipe = {"kernels": {"int8": {"chunk": 0}}}
    about = {"format": "int8 qdq", "target": "tensorrt", "recipe": recipe, "origin": {"precision": "int8"}}
    int8 = tiny_chunk_bundle(tmp_path / "int8", stay, quantization=about)
    with pytest.raises(ExportError, match=r"chunk: TensorRT's plan has \d+ kernels, 0 are allowed"):
        certify(tiny_chunk_bundle(tmp_path / "fp32", stay), int8, 400)
    assert not (int8 / "reports" / "certificate.json").exists()


def test_a_certificate_for_tensorrt_says_what_its_builder_made(tmp_path):
    stay = np.tile(np.array(START), (8, 1))
    fp32 = tiny_chunk_bundle(tmp_path / "fp32", stay)
    int8 = tiny_chunk_bundle(tmp_path / "int8", stay, quantization={"format": "int8 qdq", "target": "tensorrt"})
    write_rows(int8 / "reports" / "certify.jsonl", int8, 300)
    write_rows(int8 / "reports" / "certify.jsonl", fp32, 300)
    assert certify(fp32, int8, 400)["tensorrt"]["engines"]["chunk"]["kernels"] > 0
