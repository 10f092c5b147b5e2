"""TensorRT engines that `runtime.build` has made: what they depend on, and finding the one for this board."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from common.schema import Malformed, parse_json, read_bounded
from runtime.engines.cuda import Cuda, CudaError
from runtime.engines.listed import require_listed
from runtime.engines.onnx import EngineError
from runtime.engines.tensorrt import tensorrt
from runtime.signing import Trust

URGENT = ("fast",)
LISTING = "engines.json"
MOST_BYTES = 1024 * 1024  # of it


@dataclass(frozen=True)
class Board:
    """What an engine depends on. CUDA gives the GPU of a Nano, an NX and an AGX the same name, "Orin"; `module`, the
    device tree's name of the board ("" where there is none), tells them apart. Some power modes switch a part of the
    `multiprocessors` off."""

    gpu: str
    capability: str
    tensorrt: str
    jetpack: str
    module: str
    multiprocessors: int

    def key(self, version_compatible: bool = False) -> str:
        """Name of the folder for its engines. Version-compatible ones are for every later TensorRT of the same major
        version."""
        name = re.sub(r"[^a-z0-9]+", "-", (self.module or self.gpu).lower()).strip("-")
        version = self.tensorrt.partition(".")[0] + "-compatible" if version_compatible else self.tensorrt
        return f"{name}-sm{self.capability}-{self.multiprocessors}mp-trt{version}"


def this_board() -> Board:
    """Raises EngineError without TensorRT or without a GPU."""
    version = str(tensorrt().__version__)
    try:
        cuda = Cuda()
    except CudaError as e:
        raise EngineError(str(e)) from e
    release = Path("/etc/nv_tegra_release")
    found = re.search(r"R(\d+).*REVISION: ([\d.]+)", release.read_text()) if release.exists() else None
    jetpack = f"L4T {found.group(1)}.{found.group(2)}" if found else "none"
    model = Path("/proc/device-tree/model")
    module = model.read_text().strip("\0\n ") if model.exists() else ""
    return Board(cuda.name(), "".join(map(str, cuda.capability())), version, jetpack, module, cuda.multiprocessors())


class Built(NamedTuple):
    """An engine's file, whether it is version compatible, and its SHA-256."""

    path: Path
    version_compatible: bool
    digest: str


def built_engine(bundle: Path, name: str, onnx_sha256: str, board: Board, trust: Trust | None = None) -> Built:
    """The engine file of `bundle` for `board`, built from the ONNX file of that hash. Raises EngineError, with the
    command that mends it, when it is absent, stale or damaged, and UntrustedEngine when `trust` does not list it."""
    mend = f"run `harmowam build {bundle}` on this machine."
    folders = [bundle / "engines" / board.key(compatible) for compatible in (False, True)]
    folder = next((f for f in folders if (f / LISTING).is_file()), None)
    if folder is None:
        others = sorted(p.name for p in (bundle / "engines").glob("*") if p.is_dir())
        was = f" (it has them for {', '.join(others)})" if others else ""
        raise EngineError(f"{bundle} has no TensorRT engines for {board.key()}{was}: {mend}")
    try:
        listing = parse_json(read_bounded(folder / LISTING, MOST_BYTES))
        entry = listing["engines"][name]
        from_onnx, digest, jetpack = entry["onnx_sha256"], entry["sha256"], listing["board"]["jetpack"]
        compatible = bool(listing["options"]["version_compatible"])
    except (OSError, Malformed, KeyError, TypeError) as e:
        raise EngineError(f"{folder / LISTING} is damaged: {mend}") from e
    path = folder / f"{name}.engine"
    if jetpack != board.jetpack and not compatible:  # a newer TensorRT comes with a newer JetPack
        raise EngineError(f"the engines of {bundle} were built under {jetpack}, this is {board.jetpack}: {mend}")
    if from_onnx != onnx_sha256:
        raise EngineError(f"{path} was built from another {name}.onnx: {mend}")
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        raise EngineError(f"{path} is truncated or damaged: {mend}")
    if trust is not None:
        require_listed(trust, name, onnx_sha256, digest)
    return Built(path, compatible, digest)
