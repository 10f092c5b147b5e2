"""Building and choosing engines where there is no GPU: plans, refusals, and what is checked before an engine may run."""

import json
import shutil

import numpy as np
import pytest
from click.testing import CliRunner

from harmowam.cli import main
from runtime.bundle import Bundle, BundleError, sha256
from runtime.cuda import Cuda, CudaError
from runtime.engine import EngineError, OrtEngine
from runtime.tensorrt_build import LISTING, Board, Options, built_engine, plan
from tests.tiny import tiny_bundle

BOARD = Board("Orin (nvgpu)", "87", "10.3.0", "L4T 36.4.3")


@pytest.fixture
def bundle(tmp_path):
    return Bundle.load(tiny_bundle(tmp_path))


def pretend_built(bundle, board=BOARD):
    """What a build leaves behind, with bytes in place of engines: the checks read hashes, not engines."""
    folder = bundle.path / "engines" / board.key
    folder.mkdir(parents=True)
    engines = {}
    for name, files in bundle.manifest.engines.items():
        path = folder / f"{name}.engine"
        path.write_bytes(name.encode() * 100)
        engines[name] = {"sha256": sha256(path), "onnx_sha256": bundle.manifest.files[files.file]}
    listing = {"board": {**vars(board)}, "engines": engines}
    (folder / LISTING).write_text(json.dumps(listing))
    return folder


def test_a_dry_run_says_what_it_would_build(bundle, tmp_path):
    done = CliRunner().invoke(
        main, ["build", str(bundle.path), "--dry-run", "--dla", "--json", str(tmp_path / "p.json")]
    )
    assert done.exit_code == 0, done.output
    rows = {r["engine"]: r for r in json.loads((tmp_path / "p.json").read_text())["plan"]}
    assert set(rows) == set(bundle.manifest.engines) and rows["fast"]["stream"] == "high priority"
    assert [n for n, r in rows.items() if r["dla"]] == ["decoder"]
    assert not (bundle.path / "engines").exists()


def test_without_tensorrt_a_build_is_refused_and_leaves_nothing(bundle):
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
    assert files["fast"] == str(bundle.path / "engines/orin-nvgpu-sm87-trt10.3.0/fast.engine")


def test_a_built_engine_is_found(bundle):
    folder = pretend_built(bundle)
    assert built_engine(bundle, "fast", BOARD) == folder / "fast.engine"


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
        (truncated, "truncated or damaged"), (other_onnx, "another fast.onnx"), (other_jetpack, "built under L4T 36.3.0"),
        (other_gpu, "it has them for thor-sm110-trt10.13.0"), (half_listing, "damaged"),
    ],
)  # fmt: skip
def test_an_engine_that_does_not_match_is_refused_with_the_command_that_mends_it(bundle, spoil, says):
    spoil(bundle, pretend_built(bundle))
    with pytest.raises(EngineError, match="harmowam build") as refused:
        built_engine(bundle, "fast", BOARD)
    assert says in str(refused.value)


def test_a_provider_that_is_not_there_is_an_error_not_a_fallback(bundle):
    with pytest.raises(EngineError, match="CUDAExecutionProvider"):
        OrtEngine(bundle.path / "onnx" / "fast.onnx", provider="CUDAExecutionProvider")
    with pytest.raises(BundleError, match="CUDAExecutionProvider"):
        bundle.engine("fast", backend="cuda")


def test_the_environment_chooses_the_engine(bundle, monkeypatch):
    assert isinstance(bundle.engine("fast"), OrtEngine)
    monkeypatch.setenv("HARMOWAM_ENGINE", "tensorrt")
    with pytest.raises(BundleError, match="TensorRT cannot be loaded"):
        bundle.engine("fast")
    monkeypatch.setenv("HARMOWAM_ENGINE", "tpu")
    with pytest.raises(BundleError, match="use cpu, cuda or tensorrt"):
        bundle.engine("fast")


def test_without_a_driver_cuda_says_so():
    with pytest.raises(CudaError, match="no CUDA driver"):
        Cuda("libno-such-driver.so.1")


@pytest.mark.gpu
def test_a_real_engine_agrees_with_onnx_runtime(bundle, tmp_path):
    tensorrt = pytest.importorskip("tensorrt", reason="no TensorRT here")
    from runtime.tensorrt_build import build_engine
    from runtime.tensorrt_engine import TensorRTEngine

    assert tensorrt.__version__
    source = bundle.path / "onnx" / "fast.onnx"
    (tmp_path / "fast.engine").write_bytes(build_engine(source, tmp_path / "cache", Options(builds=1), dla=False))
    engine, reference = TensorRTEngine(tmp_path / "fast.engine", urgent=True), OrtEngine(source)
    rng = np.random.default_rng(0)
    for _ in range(3):
        feeds = {k: rng.normal(size=s.shape).astype(np.float32) for k, s in reference.inputs.items()}
        made = engine.run(feeds)
        for k, v in reference.run(feeds).items():
            assert np.allclose(made[k], v, atol=1e-4), k
