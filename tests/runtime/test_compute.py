"""Which engine and which cores a run takes: what the robot file asks for, and what this machine and the bundle have."""

import os
import re
import sys

import pytest

from runtime.bundle import Bundle
from runtime.compute import NVIDIA, ON_CPU, Chosen, Compute, ComputeError, choose, on_cores
from tests.runtime.built import BOARD, other_onnx, pretend_built
from tests.tiny import tiny_bundle


@pytest.fixture
def bundle(tmp_path):
    return Bundle.load(tiny_bundle(tmp_path))


@pytest.fixture
def no_tensorrt(monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)


NOT_HERE = {
    "no TensorRT": (lambda b: pretend_built(b), "TensorRT cannot be loaded", None),
    "none built": (lambda b: None, "has no TensorRT engines for .*: run `harmowam build", BOARD),
    "of another ONNX file": (
        lambda b: other_onnx(b, pretend_built(b)),
        "another fast.onnx: run `harmowam build",
        BOARD,
    ),
}


@pytest.fixture(params=NVIDIA)
def with_gpu(request, tmp_path):
    """The files of a Jetson, and of a workstation with NVIDIA's driver."""
    file = tmp_path / "machine" / request.param
    file.parent.mkdir(parents=True)
    file.touch()
    return tmp_path / "machine"


@pytest.mark.parametrize("case", NOT_HERE)
def test_with_a_gpu_auto_takes_the_cpu_where_no_engine_fits_and_says_what_tensorrt_lacks(
    bundle, monkeypatch, no_tensorrt, with_gpu, case
):
    """A user who asks for TensorRT by name gets that sentence as an error."""
    prepare, why, board = NOT_HERE[case]
    prepare(bundle)
    if board is not None:
        monkeypatch.setattr("runtime.compute.this_board", lambda: board)
    chosen = choose(bundle, Compute(), with_gpu)
    assert (chosen.engine, chosen.gpu) == ("cpu", False) and "\n" not in chosen.note
    assert re.search(f"^{re.escape(ON_CPU)}; TensorRT would be faster, but .*{why}", chosen.note)
    with pytest.raises(ComputeError, match=f"the engine 'tensorrt' is not there: .*{why}"):
        choose(bundle, Compute(engine="tensorrt"))


def test_without_a_gpu_auto_takes_the_cpu_and_says_only_that(bundle, no_tensorrt, tmp_path):
    assert choose(bundle, Compute(), tmp_path) == Chosen("cpu", note="engines run on the CPU (ONNX Runtime)")


@pytest.mark.parametrize("asked", ["auto", "tensorrt"])
def test_engines_built_for_this_board_are_taken_without_a_word(bundle, monkeypatch, asked):
    pretend_built(bundle)
    monkeypatch.setattr("runtime.compute.this_board", lambda: BOARD)
    assert choose(bundle, Compute(engine=asked, preprocess="gpu")) == Chosen("tensorrt", gpu=True)
    assert choose(bundle, Compute(engine="cpu")) == Chosen("cpu")


def test_cuda_that_is_not_there_is_a_sentence(bundle):
    with pytest.raises(
        ComputeError, match=r"ONNX Runtime has no CUDA on this machine: install onnxruntime-gpu .* --engine auto"
    ):
        choose(bundle, Compute(engine="cuda"))


def test_cores_are_kept_to_and_given_back():
    before = os.sched_getaffinity(0)
    with on_cores((min(before),)):
        assert os.sched_getaffinity(0) == {min(before)}
    with on_cores(()):
        assert os.sched_getaffinity(0) == before
    with pytest.raises(ComputeError, match="names core 1023, which this process may not use"), on_cores((1023,)):
        pass
    assert os.sched_getaffinity(0) == before
