"""Compile the host kernel once; it is rebuilt when the sources change. `python -m runtime.preprocess` does it by
hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from common.errors import Mendable
from common.files import write_whole

HERE = Path(__file__).parent
SOURCES = ("warp.cuh", "host.cpp")
DEVICE_SOURCES = ("warp.cuh", "device.cu")
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-shared", "-fPIC")
# Orin, Hopper, and PTX that the driver compiles for anything newer.
DEVICE_FLAGS = (
    "-std=c++17",
    "-O3",
    "--fmad=false",
    "-fatbin",
    "-gencode=arch=compute_87,code=sm_87",
    "-gencode=arch=compute_90,code=sm_90",
    "-gencode=arch=compute_87,code=compute_87",
)


class KernelError(Mendable):
    """The kernel cannot be built; the text says what to install."""


def nvcc() -> str | None:
    """The CUDA compiler, or None: everything but pre-processing on a GPU works without it."""
    return shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")


def whole(file: Path) -> bool:
    """Whether a compiled kernel is what the compiler wrote. A file that a power cut left short would end the program
    with SIGBUS when it is loaded."""
    try:
        return sha256(file.read_bytes()).hexdigest() == _sum(file).read_text()
    except (OSError, ValueError):
        return False


def _sum(file: Path) -> Path:
    return file.with_name(file.name + ".sha256")


def _keep(compiled: Path, file: Path) -> None:
    """Move what was compiled to `file`, its hash last."""
    raw = compiled.read_bytes()
    compiled.unlink()
    _sum(file).unlink(missing_ok=True)
    write_whole(file, raw, 0o755)
    write_whole(_sum(file), sha256(raw).hexdigest())


def fatbin(folder: Path | None = None, macros: Mapping[str, int] | None = None) -> Path:
    """Path of the compiled device kernel, built now if it is not there. Raises KernelError without nvcc.

    `macros`: the constants of device.cu to change, without their WARP_, for measurements.
    """
    flags = (*DEVICE_FLAGS, *(f"-DWARP_{name}={value}" for name, value in (macros or {}).items()))
    text = b"".join((HERE / s).read_bytes() for s in DEVICE_SOURCES) + " ".join(flags).encode()
    out = (folder or HERE / "_build") / f"warp-{sha256(text).hexdigest()[:16]}.fatbin"
    if whole(out):
        return out
    compiler = nvcc()
    if compiler is None:
        raise KernelError(
            "pre-processing on a GPU needs nvcc: run `sudo apt-get install nvidia-jetpack` (Jetson) or install CUDA."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f"{out.stem}.{os.getpid()}.partial")
    command = [compiler, *flags, str(HERE / "device.cu"), "-o", str(partial)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        partial.unlink(missing_ok=True)
        raise KernelError(f"nvcc failed on the pre-processing kernel: {done.stderr.strip()[:400]}")
    _keep(partial, out)
    return out


def library() -> Path:
    """Path of the compiled kernel, built now if it is not there. Raises KernelError without a C++ compiler."""
    text = b"".join((HERE / s).read_bytes() for s in SOURCES) + " ".join(FLAGS).encode()
    digest = sha256(text).hexdigest()[:16]
    folders = [HERE / "_build", Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "harmowam"]
    for folder in folders:
        if whole(folder / f"warp-{digest}.so"):
            return folder / f"warp-{digest}.so"
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None:
        raise KernelError(
            "the pre-processing kernel needs a C++ compiler and none was found: run `sudo apt-get install g++`."
        )
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(suffix=".so", dir=folder)
        except OSError:
            continue
        os.close(handle)
        done = subprocess.run([compiler, *FLAGS, str(HERE / "host.cpp"), "-o", partial], capture_output=True, text=True)
        if done.returncode:
            os.unlink(partial)
            raise KernelError(
                f"the C++ compiler {compiler} failed on the pre-processing kernel: {done.stderr.strip()[:400]}"
            )
        _keep(Path(partial), folder / f"warp-{digest}.so")
        return folder / f"warp-{digest}.so"
    raise KernelError(f"no folder to keep the compiled kernel in: make {folders[1]} writable.")
