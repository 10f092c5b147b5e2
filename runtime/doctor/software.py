"""What has to be installed: OpenCV, inference engines, compilers; and room for slots and logs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

from common.python import code_command
from runtime.doctor.finding import Finding, Machine


def ask_opencv(expression: str) -> subprocess.CompletedProcess[str]:
    """What Python prints for `expression` with cv2 imported, in a process of its own: a cv2 that was built for another
    numpy may crash its process."""
    command = code_command(f"import cv2; print({expression})")
    return subprocess.run(command, capture_output=True, text=True, check=False)


def opencv() -> Iterator[Finding]:
    """An OpenCV that imports, and finds calibration boards."""
    done = ask_opencv("cv2.__version__, hasattr(cv2.aruco, 'CharucoDetector')")
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]
        mend = "`pip install --force-reinstall opencv-python-headless`; for the system's own see docs/jetson.md, OpenCV"
        if "numpy" in done.stderr.lower():
            mend = "`pip install 'numpy==1.26.4'`: the system's OpenCV was built for numpy 1 (docs/jetson.md, OpenCV)"
        yield Finding("OpenCV", "bad", f"does not import ({why})", mend)
        return
    version, boards = done.stdout.split()
    if boards == "True":
        yield Finding("OpenCV", "ok", version)
    else:
        mend = "`sudo apt-get remove python3-opencv` where that is Ubuntu's, and see docs/jetson.md, OpenCV"
        yield Finding("OpenCV", "bad", f"{version} has no aruco.CharucoDetector, which 4.7 brought", mend)


def engines(machine: Machine) -> Iterator[Finding]:
    """An inference engine that really runs where it is meant to, and the tools that pre-processing is built with."""
    try:
        import onnxruntime

        providers = onnxruntime.get_available_providers()
        gpu = [p for p in providers if p.startswith(("CUDA", "Tensorrt"))]
        yield Finding(
            "inference",
            "ok",
            f"ONNX Runtime {onnxruntime.__version__} "
            f"({', '.join(p.removesuffix('ExecutionProvider') for p in providers)})",
        )
        if machine.jetson and not gpu:
            yield Finding(
                "inference", "warn", "ONNX Runtime runs on the CPU only", "`./build.sh jetson` builds TensorRT engines"
            )
    except ImportError:
        yield Finding(
            "inference",
            "bad",
            "no inference engine is installed",
            "`pip install 'harmowam-edge[cpu]'`, or `./build.sh jetson`",
        )
    if machine.jetson:
        for module, without, found, mend in (
            (
                "tensorrt",
                "bad",
                "does not import",
                "`sudo apt-get install python3-libnvinfer`, and a .venv made with --system-site-packages",
            ),
            (
                "pycuda",
                "warn",
                "does not import: the kernel's check through pycuda cannot run (no loop needs it)",
                "`./build.sh jetson`",
            ),
        ):
            done = subprocess.run(code_command(f"import {module}"), capture_output=True, check=False)
            yield Finding(module, "ok", "imports") if done.returncode == 0 else Finding(module, without, found, mend)
    if shutil.which("g++") or shutil.which("clang++") or os.environ.get("CXX"):
        yield Finding("C++ compiler", "ok", "found")
    else:
        yield Finding("C++ compiler", "bad", "none: pre-processing cannot be compiled", "`sudo apt-get install g++`")
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if machine.jetson and not nvcc:
        yield Finding(
            "nvcc",
            "warn",
            "not found: no pre-processing on the GPU (the loops do it on the CPU)",
            "`sudo apt-get install nvidia-jetpack`",
        )


def storage(machine: Machine) -> Iterator[Finding]:
    """Room for slots and for logs."""
    shm = machine.path("/dev/shm")
    if not os.access(shm, os.W_OK):
        yield Finding(
            "/dev/shm", "warn", "not writable: slots would lie on a disk", "`sudo mount -t tmpfs tmpfs /dev/shm`"
        )
    elif shutil.disk_usage(shm).free < 32_000_000:
        yield Finding(
            "/dev/shm", "warn", "less than 32 MB free", "remove what a killed run left: `rm -r /dev/shm/harmowam-*`"
        )
    free = shutil.disk_usage(".").free
    if free < 2_000_000_000:
        yield Finding(
            "disk",
            "warn",
            f"{free / 1e9:.1f} GB free here: a log takes 1.4 GB a minute",
            "free some, or log elsewhere with --log",
        )
    else:
        yield Finding("disk", "ok", f"{free / 1e9:.0f} GB free")
