"""Building engines where there is no GPU: plans, refusals, and what is checked before a built engine may run."""

import dataclasses
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from harmowam.cli import main
from runtime.build import Options, build_engine, plan
from runtime.bundle import Bundle, BundleError, sha256
from runtime.engines.built import LISTING, built_engine
from runtime.engines.cuda import Cuda, CudaError
from runtime.engines.onnx import EngineError, OrtEngine
from runtime.engines.tensorrt import TensorRTEngine
from tests.runtime.built import BOARD, KEY, NANO, other_onnx, pretend_built
from tests.tiny import edit_manifest, tiny_bundle


@pytest.fixture
def bundle(tmp_path):
    return Bundle.load(tiny_bundle(tmp_path))


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
    edit_manifest(bundle.path, lambda m: m.update(quantization={"format": "int8 qdq", "target": "onnxruntime"}))
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
    file = folder / "fast.engine"
    assert found_engine(bundle, "fast", BOARD) == (file, False, sha256(file))


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
        assert found_engine(bundle, "fast", board)[:2] == (folder / "fast.engine", True)
    with pytest.raises(EngineError, match="harmowam build"):
        found_engine(bundle, "fast", dataclasses.replace(BOARD, tensorrt="11.4.1"))


def truncated(bundle, folder):
    (folder / "fast.engine").write_bytes(b"fast")


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
    verbosity = SimpleNamespace(DETAILED="detailed")
    trt = SimpleNamespace(MemoryPoolType=pool, ProfilingVerbosity=verbosity)
    monkeypatch.setattr("runtime.build.tensorrt", lambda: trt)
    assert build_engine(tmp_path / "fast.onnx", tmp_path / "cache", Options()) == b"plan"
    assert asked["tf32"] is True and "use_dla" not in asked
    assert asked["profiling_verbosity"] == "detailed"  # or the inspector tells no types


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


def test_the_reference_of_a_build_computes_what_onnx_runtime_computes(bundle):
    source = bundle.path / "onnx" / "fast.onnx"
    literal, usual = OrtEngine(source, literal=True), OrtEngine(source)
    rng = np.random.default_rng(0)
    feeds = {k: rng.normal(size=s.shape).astype(np.float32) for k, s in usual.inputs.items()}
    wanted = usual.run(feeds)
    for k, v in literal.run(feeds).items():
        assert np.allclose(v, wanted[k], atol=1e-4), k
