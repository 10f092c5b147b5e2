"""Every name of TensorRT that our code uses exists in each TensorRT that a JetPack ships, checked on NVIDIA's real
bindings.

No wheel brings the libraries behind the bindings; a dozen exported C symbols are enough for an import, so the test
builds libraries with these. Nothing is executed on a GPU here: this test is about names, members and keywords.
"""

import ast
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".build" / "tensorrt"
VERSIONS = ("10.3.0", "10.13.3.9", "11.4.0.106")  # JetPack 6.2; the last line of 10; 11
SYMBOLS = {
    "nvinfer": [
        "createInferBuilder_INTERNAL",
        "createInferRuntime_INTERNAL",
        "createInferRefitter_INTERNAL",
        "getPluginRegistry",
        "getBuilderPluginRegistry",
    ],
    "nvinfer_plugin": ["initLibNvInferPlugins"],
    "nvonnxparser": ["createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"],
}
# Class of the bindings -> what runtime/engines/tensorrt.py calls on it; the variables are read from the source below.
OWNERS = {"_runtime": "Runtime", "_engine": "ICudaEngine", "_context": "IExecutionContext"}
LOCALS = {"inspector": "EngineInspector"}
LOOK = """
import json, sys
import tensorrt_bindings as trt
wanted = json.load(sys.stdin)
def has(path):
    x = trt
    for part in path.split("."):
        if not hasattr(x, part):
            return False
        x = getattr(x, part)
    return True
print(json.dumps({"missing": [p for p in wanted if not has(p)], "version": trt.__version__,
  "enqueue": trt.IExecutionContext.execute_async_v3.__doc__,
  "members": dir(trt.BuilderFlag) + dir(trt.NetworkDefinitionCreationFlag)}))
"""


def bindings(version: str) -> Path:
    """Folder with the unpacked wheel and its stand-in libraries; skips where neither cache nor registry has it."""
    folder = CACHE / f"{version}-py{sys.version_info.major}{sys.version_info.minor}"
    if not (folder / "tensorrt_bindings").is_dir():
        wheels = CACHE / "wheels"
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels)]
        command = [*pip, f"tensorrt-cu12-bindings=={version}"]
        tag = f"cp{sys.version_info.major}{sys.version_info.minor}"

        def found() -> list[Path]:
            return sorted(wheels.glob(f"tensorrt_cu12_bindings-{version}-*{tag}*.whl"))

        done = None if found() else subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if not found():
            pytest.skip(f"TensorRT bindings {version} for {tag} cannot be had: {done.stderr.strip()[-200:]}")
        with zipfile.ZipFile(found()[0]) as wheel:
            wheel.extractall(folder)
    major = version.partition(".")[0]
    for library, symbols in SYMBOLS.items():
        target = folder / f"lib{library}.so.{major}"
        if not target.exists():
            source = folder / f"{library}.c"
            source.write_text("".join(f"void *{s}(void) {{ return 0; }}\n" for s in symbols))
            subprocess.run(
                [
                    os.environ.get("CC", "cc"),
                    "-shared",
                    "-fPIC",
                    f"-Wl,-soname,{target.name}",
                    "-o",
                    str(target),
                    str(source),
                ],
                check=True,
            )
    return folder


def used() -> set[str]:
    """Dotted names below `tensorrt` that our two modules use, read from their syntax trees."""
    names = set()
    for file in ("engines/tensorrt.py", "build.py"):
        for node in ast.walk(ast.parse((ROOT / "runtime" / file).read_text())):
            parts: list[str] = []
            while isinstance(node, ast.Attribute):
                parts.insert(0, node.attr)
                node = node.value
            if isinstance(node, ast.Name) and node.id == "trt" and parts:
                names.add(".".join(parts))
            elif isinstance(node, ast.Name) and node.id == "self" and len(parts) > 1 and parts[0] in OWNERS:
                names.add(f"{OWNERS[parts[0]]}.{parts[1]}")
            elif isinstance(node, ast.Name) and node.id in LOCALS and parts:
                names.add(f"{LOCALS[node.id]}.{parts[0]}")
    return names


def look(version: str, wanted: set[str]) -> dict:
    folder = bindings(version)
    environment = {**os.environ, "PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        input=json.dumps(sorted(wanted)),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(done.stdout))


def test_what_we_use_is_read_from_the_source():
    names = used()
    assert "Runtime.engine_host_code_allowed" in names
    assert {"EngineInspector.get_engine_information", "LayerInformationFormat.JSON", "ProfilingVerbosity.DETAILED"} <= (
        names
    )
    assert {"Runtime", "Logger.ERROR", "TensorIOMode.INPUT", "MemoryPoolType.WORKSPACE", "nptype"} <= names
    assert {
        "Runtime.deserialize_cuda_engine",
        "ICudaEngine.get_tensor_shape",
        "IExecutionContext.set_tensor_address",
    } <= names


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_exists_in_the_real_bindings(version):
    seen = look(version, used())
    assert seen["version"].startswith(version[:4].rstrip("."))
    assert seen["missing"] == []
    assert "stream_handle" in seen["enqueue"]
    assert {"STRONGLY_TYPED", "VERSION_COMPATIBLE", "TF32"} <= set(seen["members"])


def test_a_name_that_went_away_is_noticed():
    """11 dropped the precision flags and the calibrator; the method of this test must see that."""
    gone = {"BuilderFlag.INT8", "BuilderFlag.FP16", "IInt8EntropyCalibrator2"}
    assert set(look("10.3.0", gone)["missing"]) == set()
    assert set(look("11.4.0.106", gone)["missing"]) == gone


POLYGRAPHY = """
import inspect, json, sys
import tensorrt_bindings
sys.modules["tensorrt"] = tensorrt_bindings
from polygraphy.backend.trt import CreateConfig, EngineBytesFromNetwork, NetworkFromOnnxPath
def names(f):
    return list(inspect.signature(f).parameters)
from polygraphy.backend.trt.config import _CreateConfigCommon
print(json.dumps({"config": names(CreateConfig.__init__) + names(_CreateConfigCommon.__init__),
  "network": names(NetworkFromOnnxPath.__init__), "engine": names(EngineBytesFromNetwork.__init__)}))
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_polygraphy_takes_our_keywords_on_each_version(version):
    pytest.importorskip("polygraphy", reason="no polygraphy: pip install 'harmowam-edge[jetson]'")
    folder = bindings(version)
    environment = {**os.environ, "PYTHONPATH": str(folder), "LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", POLYGRAPHY], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    known = json.loads(done.stdout)
    calls = {"create_config": "config", "network_from_onnx_path": "network", "engine_bytes_from_network": "engine"}
    seen = set()
    for node in ast.walk(ast.parse((ROOT / "runtime" / "build.py").read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in calls:
            seen.add(node.func.id)
            assert {k.arg for k in node.keywords} <= set(known[calls[node.func.id]]), node.func.id
    assert seen == set(calls)
