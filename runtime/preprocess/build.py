"""Compile the host kernel once; it is rebuilt when the sources change. `python -m runtime.preprocess` does it by hand."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = ("warp.cuh", "host.cpp")
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-shared", "-fPIC")


class KernelError(Exception):
    """The kernel cannot be built; the text says what to install."""


def library() -> Path:
    """Path of the compiled kernel, built now if it is not there. Raises KernelError without a C++ compiler."""
    digest = hashlib.sha256(b"".join((HERE / s).read_bytes() for s in SOURCES) + " ".join(FLAGS).encode()).hexdigest()[
        :16
    ]
    folders = [HERE / "_build", Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "harmowam"]
    for folder in folders:
        if (folder / f"warp-{digest}.so").exists():
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
        os.chmod(partial, 0o755)
        os.replace(partial, folder / f"warp-{digest}.so")
        return folder / f"warp-{digest}.so"
    raise KernelError(f"no folder to keep the compiled kernel in: make {folders[1]} writable.")
