"""A TensorRT engine's memory, streams, graph and failures, on an emulated CUDA driver (emulated_driver.c)."""

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime.build import Options
from runtime.bundle import Bundle, sha256
from runtime.engines.cuda import Cuda, CudaError
from runtime.engines.onnx import EngineError
from runtime.engines.tensorrt import TensorRTEngine
from tests.runtime.built import BOARD, pretend_built
from tests.tiny import tiny_bundle


@pytest.fixture
def bundle(tmp_path):
    return Bundle.load(tiny_bundle(tmp_path))


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """Path of the emulated driver."""
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).parent / "emulated_driver.c"
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-o", str(folder / "libcuda.so"), str(source)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"no C compiler: {e}")
    return str(folder / "libcuda.so")


class PretendedTensorRT:
    """`tensorrt` with one engine: y = 2 x + 1, for shape [2, 3]."""

    def __init__(self, driver):
        self.lib = ctypes.CDLL(driver)
        self.lib.fake_kernel.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self.lib.fake_priority.argtypes = [ctypes.c_void_p]
        self.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
        self.TensorIOMode = SimpleNamespace(INPUT=1, OUTPUT=2)
        self.LayerInformationFormat = SimpleNamespace(JSON="JSON")
        self.Runtime = self.runtime
        self.wants_host_code = False
        self.nptype = lambda kind: kind
        self.fails, self.refuses, self.passes = False, False, 0
        self.at: dict[str, np.ndarray] = {}
        self.kept: list[Any] = []  # a graph may run a kernel any time later

    def runtime(self, logger):
        made = SimpleNamespace(engine_host_code_allowed=False)
        made.deserialize_cuda_engine = lambda data: self.load(data, made.engine_host_code_allowed)
        return made

    def load(self, data, host_code):
        if data != b"whole" or (self.wants_host_code and not host_code):
            return None
        return SimpleNamespace(
            num_io_tensors=2,
            device_memory_size_v2=4096,
            create_engine_inspector=lambda: SimpleNamespace(
                get_engine_information=lambda form: '{"Layers": []}' if form == "JSON" else ""
            ),
            get_tensor_name=lambda i: "xy"[i],
            get_tensor_shape=lambda name: (2, 3),
            get_tensor_dtype=lambda name: np.float32,
            get_tensor_mode=lambda name: 1 + (name == "y"),
            create_execution_context=lambda: SimpleNamespace(
                set_tensor_address=self.place, execute_async_v3=self.execute
            ),
        )

    def place(self, name, address):
        self.at[name] = np.ctypeslib.as_array((ctypes.c_float * 6).from_address(address))
        return not self.refuses

    def execute(self, stream):
        def kernel():
            self.at["y"][:] = 2 * self.at["x"] + 1
            self.passes += 1

        self.kept.append(ctypes.CFUNCTYPE(None)(kernel))
        return not self.fails and self.lib.fake_kernel(stream, ctypes.cast(self.kept[-1], ctypes.c_void_p)) == 0


@pytest.fixture
def pretended(driver, monkeypatch, tmp_path):
    trt = PretendedTensorRT(driver)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    (tmp_path / "e.engine").write_bytes(b"whole")
    before = trt.lib.fake_live()
    return SimpleNamespace(
        trt=trt, cuda=Cuda(driver), path=tmp_path / "e.engine", left=lambda: trt.lib.fake_live() - before
    )


X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("graph", [True, False])
def test_each_pass_takes_what_it_was_fed(pretended, graph):
    engine = TensorRTEngine(pretended.path, cuda=pretended.cuda, graph=graph)
    for i in range(3):
        assert np.array_equal(engine.run({"x": X + i})["y"], 2 * (X + i) + 1)
    assert len(pretended.trt.kept) == (2 if graph else 4)  # a graph that is replayed does not ask TensorRT
    engine.close()
    engine.close()
    assert pretended.left() == 0


def test_an_engine_tells_its_layers_and_its_memory(pretended):
    engine = TensorRTEngine(pretended.path, cuda=pretended.cuda)
    assert engine.inspected() == ('{"Layers": []}', 4096)
    assert engine.kernels == 1  # of its graph, which copies in and out as well
    engine.close()
    assert pretended.left() == 0


def test_host_code_of_a_version_compatible_engine_is_allowed_where_its_listing_says_so(pretended, bundle, monkeypatch):
    pretended.trt.wants_host_code = True
    with pytest.raises(EngineError, match="another TensorRT"):
        TensorRTEngine(pretended.path, cuda=pretended.cuda)
    TensorRTEngine(pretended.path, cuda=pretended.cuda, version_compatible=True).close()
    digest = sha256(pretend_built(bundle, Options(version_compatible=True)) / "fast.engine")
    asked = []
    monkeypatch.setattr("runtime.engines.built.this_board", lambda: BOARD)
    monkeypatch.setattr("runtime.engines.tensorrt.TensorRTEngine.__init__", lambda self, path, **how: asked.append(how))
    bundle._open("fast", bundle.manifest.engines["fast"], 1, "tensorrt")
    assert asked == [{"urgent": True, "version_compatible": True, "digest": digest}]


def test_an_engine_that_is_exchanged_after_the_look_at_its_hash_is_not_loaded(pretended):
    digest = sha256(pretended.path)
    TensorRTEngine(pretended.path, cuda=pretended.cuda, digest=digest).close()
    pretended.path.write_bytes(b"other")
    with pytest.raises(
        EngineError, match="was exchanged while it was opened: copy the bundle again, or build it again"
    ):
        TensorRTEngine(pretended.path, cuda=pretended.cuda, digest=digest)
    assert pretended.left() == 0


def test_waiting_threads_sleep_and_a_context_in_use_is_taken_as_it_is(driver):
    for _ in range(2):
        cuda = Cuda(driver)
    assert ctypes.CDLL(driver).fake_context_flags() == 4
    assert cuda.capability() == (8, 7) and cuda.multiprocessors() == 14


def test_start_does_not_wait(pretended):
    engine = TensorRTEngine(pretended.path, cuda=pretended.cuda)
    passes = pretended.trt.passes
    engine.start({"x": X})
    assert pretended.trt.passes == passes
    assert np.array_equal(engine.wait()["y"], 2 * X + 1) and pretended.trt.passes == passes + 1
    engine.close()


def test_an_urgent_engine_has_the_greatest_priority(pretended):
    for urgent, priority in ((True, -5), (False, 0)):
        engine = TensorRTEngine(pretended.path, urgent=urgent, cuda=pretended.cuda)
        assert pretended.trt.lib.fake_priority(engine._stream) == priority
        engine.close()


def test_an_engine_may_be_handed_to_another_thread(pretended):
    engine = TensorRTEngine(pretended.path, cuda=pretended.cuda)
    got = []
    thread = threading.Thread(target=lambda: got.append(engine.run({"x": X})["y"].copy()))
    thread.start()
    thread.join()
    assert np.array_equal(got[0], 2 * X + 1)
    engine.close()


def test_the_pretended_driver_wants_a_context_in_each_thread(pretended):
    codes = []

    def ask():
        try:
            pretended.cuda.stream(True)
        except CudaError as e:
            codes.append(str(e))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert "201" in codes[0]


@pytest.mark.parametrize("what", ["fails", "refuses"])
def test_an_engine_that_cannot_run_leaves_nothing_behind(pretended, what):
    setattr(pretended.trt, what, True)
    with pytest.raises(EngineError, match="harmowam build"):
        TensorRTEngine(pretended.path, cuda=pretended.cuda)
    assert pretended.left() == 0


def test_a_truncated_engine_is_refused(pretended):
    pretended.path.write_bytes(b"who")
    with pytest.raises(EngineError, match="truncated"):
        TensorRTEngine(pretended.path, cuda=pretended.cuda)
    assert pretended.left() == 0


def test_feeds_that_do_not_fit_are_refused(pretended):
    engine = TensorRTEngine(pretended.path, cuda=pretended.cuda)
    with pytest.raises(EngineError, match="input 'x' must be float32"):
        engine.run({"x": X[:1]})
    engine.close()
