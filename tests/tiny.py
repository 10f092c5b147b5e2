"""A bundle of toy engines with the tensors of the real ones: made in milliseconds, for tests of everything round the
models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from firmware_bridge.arms.family import Family
from firmware_bridge.arms.so101 import FAMILY as so101
from runtime.bundle import save_bundle, sealed
from runtime.manifest import (
    Chunk,
    EngineFiles,
    Gate,
    JointLimits,
    Manifest,
    PolicyKind,
    Preprocess,
    Reactive,
)

TASK = "put the red cube on the plate"
SIDE = 48
FRONT: dict[str, Any] = {
    "schema": 1,
    "name": "front",
    "width": 96,
    "height": 96,
    "D": [],
    "K": [[131.879, 0, 47.5], [0, 131.879, 47.5], [0, 0, 1]],
    "T_base_from_cam": [[0, 0.73991, -0.67271, 0.5], [1, 0, 0, 0], [0, -0.67271, -0.73991, 0.36], [0, 0, 0, 1]],
}
WRIST = {**FRONT, "name": "wrist", "K": [[62.555, 0, 47.5], [0, 62.555, 47.5], [0, 0, 1]], "T_base_from_cam": None}
IMAGE, FUTURE, STATE = [1, 3, 96, 96], [3, 16, 12, 12], [1, 4]
INPUTS: dict[str, dict[str, list[int]]] = {
    "world_model": {"front": IMAGE, "text": [1, 32], "proprio": STATE, "noise": [1, 48, 12, 12]},
    "predictive": {
        "wrist": IMAGE,
        "latent": [1, 16, 12, 12],
        "tokens": [1, 36, 96],
        "proprio": STATE,
        "noise": [1, 16, 6],
    },
    "fast": {"front": IMAGE, "wrist": IMAGE, "future": FUTURE, "proprio": STATE},
    "decoder": {"future": FUTURE},
}


def outputs(gate: float) -> dict[str, dict[str, np.ndarray]]:
    """The constant output of each engine: reach for the middle of the table with an open jaw, plan to stay."""
    heat = np.zeros((1, SIDE, SIDE), np.float32)
    heat[0, SIDE // 2, SIDE // 2] = 20.0
    chunk = np.zeros((1, 16, 6), np.float32)
    chunk[..., 5] = 1.0
    said: dict[str, dict[str, Any]] = {
        "world_model": {
            "latent": np.zeros((1, 16, 12, 12)),
            "tokens": np.zeros((1, 36, 96)),
            "future": np.zeros(FUTURE),
        },
        "predictive": {"chunk": chunk},
        "fast": {"heat": heat.reshape(1, -1), "reach": np.array([[0.06, 1.4, 0.0]]), "gate": np.array([[gate, 1.0]])},
        "decoder": {"frames": np.linspace(-1, 1, 3 * 3 * 96 * 96).reshape(3, 3, 96, 96)},
    }
    return {e: {k: np.asarray(v, np.float32) for k, v in o.items()} for e, o in said.items()}


def write_engine(path: Path, inputs: dict[str, list[int]], said: dict[str, np.ndarray]) -> None:
    """An ONNX model that adds a millionth of its first input to constants, so that its output depends on its input."""
    first = next(iter(inputs))
    nodes = [
        helper.make_node("ReduceMean", [first], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "small"], ["trace"]),
    ]
    nodes += [helper.make_node("Add", [f"{k}.said", "trace"], [k]) for k in said]
    weights = [numpy_helper.from_array(v, f"{k}.said") for k, v in said.items()]
    weights.append(numpy_helper.from_array(np.array(1e-6, np.float32), "small"))
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, s) for k, s in inputs.items()],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v.shape) for k, v in said.items()],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def write_endless_engine(path: Path, inputs: dict[str, list[int]], said: dict[str, np.ndarray]) -> None:
    """An ONNX model of the same tensors whose loop never ends."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Add", ["x", "x"], ["y"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("goes", TensorProto.BOOL, []),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, []),
        ],
    )
    nodes = [
        helper.make_node("ReduceMean", [next(iter(inputs))], ["mean"], keepdims=0),
        helper.make_node("Loop", ["", "always", "mean"], ["trace"], body=body),
    ]
    nodes += [helper.make_node("Add", [f"{k}.said", "trace"], [k]) for k in said]
    weights = [numpy_helper.from_array(v, f"{k}.said") for k, v in said.items()]
    weights.append(numpy_helper.from_array(np.array(True), "always"))
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, s) for k, s in inputs.items()],
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v.shape) for k, v in said.items()],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
CHUNK_INPUTS: dict[str, list[int]] = {"front": IMAGE, "wrist": IMAGE, "text": [1, 32], "state": [1, 6]}


def save_tiny(
    folder: Path,
    inputs: dict[str, dict[str, list[int]]],
    said: dict[str, dict[str, np.ndarray]],
    endless: str = "",
    **differs: Any,
) -> Path:
    """Write a bundle of toy engines into `folder`; `endless`: the engine that never returns; `differs`: fields of its
    manifest."""
    work = folder / "engines"
    work.mkdir(parents=True)
    for name in inputs:
        write = write_endless_engine if name == endless else write_engine
        write(work / f"{name}.onnx", inputs[name], said[name])
    (work / "samples.npz").write_bytes(b"none")
    usual: dict[str, Any] = {
        "licence": "Apache-2.0",
        "arm_family": "so101",
        "cameras": {"front": FRONT, "wrist": WRIST},
        "quantization": {"format": "fp32"},
        "engines": {k: EngineFiles(f"onnx/{k}.onnx", inputs[k], list(said[k])) for k in inputs},
        "preprocess": Preprocess([96, 96], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
        "joints": [JointLimits(n, float(a), float(b)) for n, a, b in zip(JOINTS, so101.LOWER, so101.UPPER)],
        "links": so101.lengths,
        "tasks": {TASK: [0.1] * 32, "put the blue cube on the plate": [0.2] * 32},
    }
    manifest = Manifest(**{**usual, **differs})
    files = {"samples.npz": work / "samples.npz", **{f"onnx/{k}.onnx": work / f"{k}.onnx" for k in inputs}}
    out = folder / f"{manifest.name}.bundle"
    save_bundle(out, manifest, files)
    return out


def edit_manifest(bundle: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a bundle's manifest in place as its maker would have written it: with the hash that fits."""
    file = bundle / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(sealed(manifest))


def tiny_bundle(folder: Path, gate: float = 0.1, endless: str = "", done: float | None = None) -> Path:
    """Write a bundle into `folder`; `gate` is the interaction probability that its fast engine gives, `endless` names
    the engine that never returns. With `done`, its world model depends on the text, draws no noise and gives this
    P(done)."""
    inputs, said = dict(INPUTS), outputs(gate)
    if done is not None:
        inputs["world_model"] = {k: INPUTS["world_model"][k] for k in ("text", "front", "proprio")}
        said["world_model"]["done"] = np.array([[done]], np.float32)
    return save_tiny(
        folder,
        inputs,
        said,
        endless,
        name="tiny",
        chunk=Chunk(16, 50, [[0.0] * 6] * 16, [[1.0] * 6] * 16),
        gate=Gate(on=0.5, off=0.5, done=None if done is None else 0.9),
        reactive=Reactive(SIDE),
    )


def tiny_chunk_bundle(
    folder: Path, targets: np.ndarray, dt_ms: int = 50, inputs: dict[str, list[int]] = CHUNK_INPUTS, **differs: Any
) -> Path:
    """A bundle of kind chunk whose engine always plans the joint angles `targets` [K,J] (rad)."""
    chunk = np.asarray(targets, np.float32)[None]
    fields: dict[str, Any] = {
        "name": "tiny-chunk",
        "policy": PolicyKind("chunk"),
        "chunk": Chunk(len(targets), dt_ms),
        "gate": Gate(on=1.0, off=1.0),
        "reactive": Reactive(),
        **differs,
    }
    return save_tiny(folder, {"chunk": inputs}, {"chunk": {"chunk": chunk}}, **fields)


def tiny_diffusion_bundle(folder: Path, dt_ms: int = 40, steps: int = 3) -> Path:
    """A bundle of kind diffusion whose plans are all but 0, and depend on the picture of a step before."""
    sample, condition = [1, 9, 6], [1, 4]
    inputs = {
        "encode": {"front-1": IMAGE, "state-1": [1, 6], "front": IMAGE, "state": [1, 6]},
        "denoise": {"condition": condition, "sample": sample, "place": [1, steps]},
    }
    said = {
        "encode": {"condition": np.zeros(condition, np.float32)},
        "denoise": {"next": np.zeros(sample, np.float32), "chunk": np.zeros((1, 8, 6), np.float32)},
    }
    fields: dict[str, Any] = {
        "name": "tiny-diffusion",
        "policy": PolicyKind("diffusion"),
        "chunk": Chunk(8, dt_ms, first=0, use=4),
        "gate": Gate(on=1.0, off=1.0),
        "reactive": Reactive(),
    }
    return save_tiny(folder, inputs, said, **fields)


def of_arm(arm: Family) -> dict[str, Any]:
    """The fields of a manifest that differ for another arm."""
    joints = [JointLimits(n, float(a), float(b)) for n, a, b in zip(arm.JOINTS, arm.LOWER, arm.UPPER, strict=True)]
    return {"arm_family": arm.NAME, "joints": joints, "links": arm.lengths}
