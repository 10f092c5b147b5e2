"""Building and choosing engines where there is no GPU: plans, refusals, and what is checked before an engine may
run."""

import ctypes
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from harmowam.cli import main
from runtime.build import Options, build_engine, plan
from runtime.bundle import Bundle, BundleError, sha256
from runtime.compute import Chosen, Compute, ComputeError, choose, on_cores
from runtime.engines.built import LISTING, Board, built_engine
from runtime.engines.cuda import Cuda, CudaError
from runtime.engines.onnx import EngineError, OrtEngine
from runtime.engines.tensorrt import TensorRTEngine, tensorrt
from tests.tiny import tiny_bundle

NANO = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit"
BOARD = Board("Orin", "87", "10.3.0", "L4T 36.4.3", NANO, 8)
KEY = "nvidia-jetson-orin-nano-engineering-reference-developer-kit-sm87-8mp-trt10.3.0"


@pytest.fixture
def bundle(tmp_path):
    return Bundle.load(tiny_bundle(tmp_path))


def pretend_built(bundle, options=Options()):
    """What a build leaves behind, with bytes in place of engines: the checks read hashes, not engines."""
    folder = bundle.path / "engines" / BOARD.key(options.version_compatible)
    folder.mkdir(parents=True)
    engines = {}
    for name, files in bundle.manifest.engines.items():
        path = folder / f"{name}.engine"
        path.write_bytes(name.encode() * 100)
        engines[name] = {"sha256": sha256(path), "onnx_sha256": bundle.manifest.files[files.file]}
    listing = {"board": vars(BOARD), "options": vars(options), "engines": engines}
    (folder / LISTING).write_text(json.dumps(listing))
    return folder


def test_a_dry_run_says_what_it_would_build(bundle, tmp_path):
    done = CliRunner().invoke(main, ["build", str(bundle.path), "--dry-run", "--json", str(tmp_path / "p.json")])
    assert done.exit_code == 0, done.output
    rows = {r["engine"]: r for r in json.loads((tmp_path / "p.json").read_text())["plan"]}
    assert set(rows) == set(bundle.manifest.engines) and rows["fast"]["stream"] == "high priority"
    assert rows["fast"]["tf32"] is True  # the roofline reckons with it, and Polygraphy's own default is without
    assert not (bundle.path / "engines").exists()


@pytest.fixture
def no_tensorrt(monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)


def test_without_tensorrt_a_build_is_refused_and_leaves_nothing(bundle, no_tensorrt):
    done = CliRunner().invoke(main, ["build", str(bundle.path)])
    assert done.exit_code == 2 and "TensorRT cannot be loaded" in done.output
    assert not (bundle.path / "engines").exists()


def test_a_bundle_for_onnxruntime_is_refused(bundle):
    bundle.manifest.quantization.update(format="int8 qdq", target="onnxruntime")
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    manifest["quantization"] = {"format": "int8 qdq", "target": "onnxruntime"}
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    done = CliRunner().invoke(main, ["build", str(bundle.path), "--dry-run"])
    assert done.exit_code == 2 and "export --target tensorrt" in done.output


def test_the_folder_is_named_after_gpu_and_version(bundle):
    files = {r["engine"]: r["file"] for r in plan(bundle, Options(), BOARD)}
    assert files["fast"] == str(bundle.path / "engines" / KEY / "fast.engine")
    bare = dataclasses.replace(BOARD, gpu="NVIDIA H100", capability="90", module="", multiprocessors=132)
    assert bare.key() == "nvidia-h100-sm90-132mp-trt10.3.0"


def found_engine(bundle, name, board):
    return built_engine(bundle.path, name, bundle.manifest.files[bundle.manifest.engines[name].file], board)


def test_a_built_engine_is_found(bundle):
    folder = pretend_built(bundle)
    assert found_engine(bundle, "fast", BOARD) == (folder / "fast.engine", False)


@pytest.mark.parametrize("other", [{"module": NANO.replace("Nano", "NX")}, {"multiprocessors": 4}])
def test_engines_of_another_module_or_power_mode_are_refused(bundle, other):
    """CUDA calls the GPU of every Orin "Orin", sm_87; a Nano's engines load on an AGX and leave half of it idle."""
    pretend_built(bundle)
    with pytest.raises(EngineError, match=rf"it has them for {KEY}\): run `harmowam build"):
        found_engine(bundle, "fast", dataclasses.replace(BOARD, **other))


def test_newer_tensorrts_find_version_compatible_engines(bundle):
    folder = pretend_built(bundle, Options(version_compatible=True))
    assert folder.name == KEY.replace("trt10.3.0", "trt10-compatible")
    newer = dataclasses.replace(BOARD, tensorrt="10.13.3", jetpack="L4T 36.5.0")
    for board in (BOARD, newer):
        assert found_engine(bundle, "fast", board) == (folder / "fast.engine", True)
    with pytest.raises(EngineError, match="harmowam build"):
        found_engine(bundle, "fast", dataclasses.replace(BOARD, tensorrt="11.4.1"))


def truncated(bundle, folder):
    (folder / "fast.engine").write_bytes(b"fast")


def other_onnx(bundle, folder):
    listing = json.loads((folder / LISTING).read_text())
    listing["engines"]["fast"]["onnx_sha256"] = "0" * 64
    (folder / LISTING).write_text(json.dumps(listing))


def other_jetpack(bundle, folder):
    listing = json.loads((folder / LISTING).read_text())
    listing["board"]["jetpack"] = "L4T 36.3.0"
    (folder / LISTING).write_text(json.dumps(listing))


def other_gpu(bundle, folder):
    shutil.move(folder, folder.with_name("thor-sm110-trt10.13.0"))


def half_listing(bundle, folder):
    (folder / LISTING).write_text((folder / LISTING).read_text()[:40])


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (truncated, "truncated or damaged"),
        (other_onnx, "another fast.onnx"),
        (other_jetpack, "built under L4T 36.3.0"),
        (other_gpu, "it has them for thor-sm110-trt10.13.0"),
        (half_listing, "damaged"),
    ],
)
def test_an_engine_that_does_not_match_is_refused_with_the_command_that_mends_it(bundle, spoil, says):
    spoil(bundle, pretend_built(bundle))
    with pytest.raises(EngineError, match="harmowam build") as refused:
        found_engine(bundle, "fast", BOARD)
    assert says in str(refused.value)


def test_a_provider_that_is_not_there_is_an_error_not_a_fallback(bundle):
    with pytest.raises(EngineError, match="CUDAExecutionProvider"):
        OrtEngine(bundle.path / "onnx" / "fast.onnx", provider="CUDAExecutionProvider")
    with pytest.raises(BundleError, match="CUDAExecutionProvider"):
        bundle.engine("fast", backend="cuda")


def test_what_is_asked_for_runs_or_says_why_not(bundle, no_tensorrt):
    assert isinstance(bundle.engine("fast"), OrtEngine)
    with pytest.raises(BundleError, match="TensorRT cannot be loaded"):
        bundle.engine("fast", backend="tensorrt")
    with pytest.raises(BundleError, match="the engine 'tpu' is unknown: use cpu, cuda or tensorrt"):
        bundle.engine("fast", backend="tpu")


NOT_HERE = {
    "no TensorRT": (lambda b: pretend_built(b), "TensorRT cannot be loaded", None),
    "none built": (lambda b: None, "has no TensorRT engines for .*: run `harmowam build", BOARD),
    "of another ONNX file": (
        lambda b: other_onnx(b, pretend_built(b)),
        "another fast.onnx: run `harmowam build",
        BOARD,
    ),
}


@pytest.mark.parametrize("case", NOT_HERE)
def test_auto_takes_the_cpu_where_no_engine_fits_and_says_what_would_be_faster(bundle, monkeypatch, no_tensorrt, case):
    """And who asks for TensorRT gets that sentence as an error."""
    prepare, why, board = NOT_HERE[case]
    prepare(bundle)
    if board is not None:
        monkeypatch.setattr("runtime.compute.this_board", lambda: board)
    chosen = choose(bundle, Compute())
    assert (chosen.engine, chosen.gpu) == ("cpu", False) and "\n" not in chosen.note
    assert chosen.note.startswith("engines: ONNX Runtime on the CPU") and re.search(why, chosen.note)
    with pytest.raises(ComputeError, match=f"the engine 'tensorrt' is not there: .*{why}"):
        choose(bundle, Compute(engine="tensorrt"))


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


def test_without_a_driver_cuda_says_so():
    with pytest.raises(CudaError, match="no CUDA driver"):
        Cuda("libno-such-driver.so.1")


@pytest.mark.gpu
def test_onnxruntimes_cuda_provider_agrees_with_its_cpu_provider(bundle):
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider")
    source = bundle.path / "onnx" / "fast.onnx"
    there, here = OrtEngine(source, provider="CUDAExecutionProvider"), OrtEngine(source)
    feeds = {k: np.ones(s.shape, np.float32) for k, s in here.inputs.items()}
    made = there.run(feeds)
    for k, v in here.run(feeds).items():
        assert np.allclose(made[k], v, atol=1e-2), k


def test_float32_layers_are_built_with_tf32(monkeypatch, tmp_path):
    """Polygraphy clears TensorRT's own TF32 unless it is asked for."""
    asked = {}
    polygraphy = SimpleNamespace(
        create_config=lambda builder, network, **how: asked.update(how),
        network_from_onnx_path=lambda *_, **__: [1, 2],
        engine_bytes_from_network=lambda *_, **__: b"plan",
        PolygraphyException=RuntimeError,
    )
    for name in ("polygraphy", "polygraphy.backend", "polygraphy.backend.trt", "polygraphy.exception"):
        monkeypatch.setitem(sys.modules, name, polygraphy)
    pool = SimpleNamespace(WORKSPACE=0)
    monkeypatch.setattr("runtime.build.tensorrt", lambda: SimpleNamespace(MemoryPoolType=pool))
    assert build_engine(tmp_path / "fast.onnx", tmp_path / "cache", Options()) == b"plan"
    assert asked["tf32"] is True and "use_dla" not in asked


@pytest.mark.gpu
def test_a_real_engine_agrees_with_onnx_runtime(bundle, tmp_path):
    assert pytest.importorskip("tensorrt", reason="no TensorRT here").__version__
    source = bundle.path / "onnx" / "fast.onnx"
    (tmp_path / "fast.engine").write_bytes(build_engine(source, tmp_path / "cache", Options(builds=1)))
    engine, reference = TensorRTEngine(tmp_path / "fast.engine", urgent=True), OrtEngine(source)
    rng = np.random.default_rng(0)
    for _ in range(3):
        feeds = {k: rng.normal(size=s.shape).astype(np.float32) for k, s in reference.inputs.items()}
        made = engine.run(feeds)
        for k, v in reference.run(feeds).items():
            assert np.allclose(made[k], v, atol=1e-4), k


# A driver that does on the processor what CUDA does on a GPU, and is stricter: a call needs a context in its own thread
# (201), handles and addresses must be live (400), and what a stream was given happens when it is waited for, no sooner.
DRIVER = r"""
#include <stdlib.h>
#include <string.h>
typedef unsigned long long u64;
typedef void (*work)(void);
enum { STREAM = 1, GRAPH, READY, DEVICE, HOST };
typedef struct { int kind; void *dst; const void *src; size_t size; work fn; } Op;
typedef struct { Op *ops; int n; } List;
typedef struct { int capturing, priority; List queue, taken; } Stream;
static struct { void *p; int kind; size_t size; } live[4096];
static int lives;
static __thread void *current;
static int context;
#define NEED(x, code) do { if (!(x)) return code; } while (0)
static int find(const void *p, int kind, size_t size) {
  for (int i = 0; i < lives; i++) if (live[i].p == p && live[i].kind == kind && live[i].size >= size) return i + 1;
  return 0;
}
static void *born(void *p, int kind, size_t size) { live[lives].p = p; live[lives].kind = kind; live[lives++].size = size; return p; }
static int dies(void *p, int kind) { int i = find(p, kind, 0); if (i) live[i - 1] = live[--lives]; return i; }
static void push(List *l, Op op) { l->ops = realloc(l->ops, (l->n + 1) * sizeof op); l->ops[l->n++] = op; }
static void add(Stream *s, Op op) { push(s->capturing ? &s->taken : &s->queue, op); }
int fake_live(void) { return lives; }
int fake_priority(Stream *s) { return s->priority; }
int fake_kernel(Stream *s, work fn) { NEED(find(s, STREAM, 0), 400); add(s, (Op){2, 0, 0, 0, fn}); return 0; }
int cuInit(unsigned f) { return f; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = a == 75 ? 8 : a == 76 ? 7 : a == 16 ? 14 : -1; return d; }
int cuDeviceGetName(char *t, int n, int d) { strncpy(t, "Pretended", n); return d; }
static unsigned context_flags, retained;
unsigned fake_context_flags(void) { return context_flags; }
int cuDevicePrimaryCtxSetFlags_v2(int d, unsigned f) { NEED(!retained, 708); context_flags = f; return d; }
int cuDevicePrimaryCtxRetain(void **c, int d) { retained = 1; *c = &context; return d; }
int cuCtxSetCurrent(void *c) { NEED(c == &context, 201); current = c; return 0; }
int cuCtxGetStreamPriorityRange(int *least, int *greatest) { NEED(current, 201); *least = 0; *greatest = -5; return 0; }
int cuStreamCreateWithPriority(void **out, unsigned flags, int priority) {
  NEED(current, 201); NEED(flags == 1, 1);
  Stream *s = calloc(1, sizeof *s); s->priority = priority; *out = born(s, STREAM, 0); return 0;
}
int cuStreamSynchronize(Stream *s) {
  NEED(current, 201); NEED(find(s, STREAM, 0), 400); NEED(!s->capturing, 900);
  for (int i = 0; i < s->queue.n; i++) { Op *o = &s->queue.ops[i]; if (o->kind == 2) o->fn(); else memcpy(o->dst, o->src, o->size); }
  s->queue.n = 0; return 0;
}
int cuStreamDestroy_v2(Stream *s) { NEED(current, 201); NEED(dies(s, STREAM), 400); return 0; }
int cuMemAlloc_v2(u64 *out, size_t size) { NEED(current, 201); NEED(size, 1); *out = (u64)born(malloc(size), DEVICE, size); return 0; }
int cuMemFree_v2(u64 p) { NEED(current, 201); NEED(dies((void *)p, DEVICE), 400); free((void *)p); return 0; }
int cuMemHostAlloc(void **out, size_t size, unsigned f) {
  NEED(current, 201); NEED(size && f == 1, 1); *out = born(malloc(size), HOST, size); return 0;
}
int cuMemFreeHost(void *p) { NEED(current, 201); NEED(dies(p, HOST), 400); free(p); return 0; }
int cuMemcpyHtoDAsync_v2(u64 d, const void *h, size_t n, Stream *s) {
  NEED(current, 201); NEED(find((void *)d, DEVICE, n) && find(h, HOST, n) && find(s, STREAM, 0), 400);
  add(s, (Op){1, (void *)d, h, n, 0}); return 0;
}
int cuMemcpyDtoHAsync_v2(void *h, u64 d, size_t n, Stream *s) {
  NEED(current, 201); NEED(find((void *)d, DEVICE, n) && find(h, HOST, n) && find(s, STREAM, 0), 400);
  add(s, (Op){1, h, (void *)d, n, 0}); return 0;
}
int cuStreamBeginCapture_v2(Stream *s, int mode) {
  NEED(current, 201); NEED(find(s, STREAM, 0) && mode == 1, 400); s->capturing = 1; return 0;
}
int cuStreamEndCapture(Stream *s, void **out) {
  NEED(current, 201); NEED(find(s, STREAM, 0) && s->capturing, 400);
  List *g = malloc(sizeof *g); *g = s->taken; memset(&s->taken, 0, sizeof *g); s->capturing = 0; *out = born(g, GRAPH, 0); return 0;
}
int cuGraphInstantiateWithFlags(void **out, List *g, unsigned long long flags) {
  NEED(current, 201); NEED(find(g, GRAPH, 0) && !flags, 400);
  List *e = calloc(1, sizeof *e); for (int i = 0; i < g->n; i++) push(e, g->ops[i]); *out = born(e, READY, 0); return 0;
}
int cuGraphLaunch(List *e, Stream *s) {
  NEED(current, 201); NEED(find(e, READY, 0) && find(s, STREAM, 0), 400); for (int i = 0; i < e->n; i++) add(s, e->ops[i]); return 0;
}
int cuGraphExecDestroy(List *e) { NEED(current, 201); NEED(dies(e, READY), 400); return 0; }
int cuGraphDestroy(List *g) { NEED(current, 201); NEED(dies(g, GRAPH), 400); return 0; }
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """Path of the pretended driver."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "cuda.c").write_text(DRIVER)
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", "-o", str(folder / "libcuda.so"), str(folder / "cuda.c")]
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
    assert len(pretended.trt.kept) == (2 if graph else 4)  # a graph asks TensorRT for nothing any more
    engine.close()
    engine.close()
    assert pretended.left() == 0


def test_host_code_of_a_version_compatible_engine_is_allowed_where_its_listing_says_so(pretended, bundle, monkeypatch):
    pretended.trt.wants_host_code = True
    with pytest.raises(EngineError, match="another TensorRT"):
        TensorRTEngine(pretended.path, cuda=pretended.cuda)
    TensorRTEngine(pretended.path, cuda=pretended.cuda, version_compatible=True).close()
    pretend_built(bundle, Options(version_compatible=True))
    asked = []
    monkeypatch.setattr("runtime.engines.built.this_board", lambda: BOARD)
    monkeypatch.setattr("runtime.engines.tensorrt.TensorRTEngine.__init__", lambda self, path, **how: asked.append(how))
    bundle._open("fast", bundle.manifest.engines["fast"], 1, "tensorrt")
    assert asked == [{"urgent": True, "version_compatible": True}]


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


def test_the_reference_of_a_build_computes_what_onnx_runtime_computes(bundle):
    source = bundle.path / "onnx" / "fast.onnx"
    literal, usual = OrtEngine(source, literal=True), OrtEngine(source)
    rng = np.random.default_rng(0)
    feeds = {k: rng.normal(size=s.shape).astype(np.float32) for k, s in usual.inputs.items()}
    wanted = usual.run(feeds)
    for k, v in literal.run(feeds).items():
        assert np.allclose(v, wanted[k], atol=1e-4), k


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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between Polygraphy and the bindings
@pytest.mark.parametrize("name", ["fast", "decoder", "predictive", "world_model"])
def test_nvidias_parser_and_builder_take_every_graph(bundle, tmp_path, name):
    """TensorRT for RTX builds engines without a GPU, which no other TensorRT does."""
    pytest.importorskip("tensorrt_rtx", reason="no TensorRT for RTX: pip install tensorrt-rtx", exc_type=ImportError)
    tensorrt()  # before Polygraphy, which decides for which TensorRT it is when it is imported
    pytest.importorskip("polygraphy", reason="no polygraphy: pip install 'harmowam-edge[jetson]'")
    made = build_engine(bundle.path / bundle.manifest.engines[name].file, tmp_path / "cache", Options())
    assert len(made) > 1000 and (tmp_path / "cache").exists()
