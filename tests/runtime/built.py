"""What `harmowam build` leaves behind, with bytes in place of engines."""

import json

from runtime.build import Options
from runtime.bundle import sha256
from runtime.engines.built import LISTING, Board

NANO = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit"
BOARD = Board("Orin", "87", "10.3.0", "L4T 36.4.3", NANO, 8)
KEY = "nvidia-jetson-orin-nano-engineering-reference-developer-kit-sm87-8mp-trt10.3.0"


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


def other_onnx(bundle, folder):
    listing = json.loads((folder / LISTING).read_text())
    listing["engines"]["fast"]["onnx_sha256"] = "0" * 64
    (folder / LISTING).write_text(json.dumps(listing))
