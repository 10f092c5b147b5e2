"""device.cu on the processor: the C++ compiler builds it unchanged on emulated_cuda.h, which runs its threads."""

import ctypes
import dataclasses
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any

import numpy as np

from runtime.preprocess import build
from runtime.preprocess.cuda import DeviceWarp, Tuning
from tests.runtime.warps import camera

COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")  # as build.py
GUARD = 4096  # bytes before and behind every piece of memory: more than a row of any frame here
FILL = 0xCC
MAIN = """
#include "emulated_cuda.h"
{changes}
#include "device.cu"

extern "C" const char* emulate_warp_tiles(
    const emulated::Launch* how, const Plan* plans, const Frame* frames, const Job* jobs) {{
  return emulated::launch(*how, [=] {{ warp_tiles(plans, frames, jobs); }});
}}

extern "C" const char* emulate_warp_any(const emulated::Launch* how, const Pass* passes, const Frame* frames) {{
  return emulated::launch(*how, [=] {{ warp_any(passes, frames); }});
}}
"""


class EmulationError(Exception):
    """The kernel did something that a GPU does not allow."""


class _Launch(ctypes.Structure):
    """Mirrors `Launch` in emulated_cuda.h; `readable` holds pairs of address and size."""

    _fields_ = [
        *((n, ctypes.c_uint32) for n in ("grid_x", "grid_y", "threads", "shared_bytes")),
        ("readable", ctypes.c_void_p),
        ("ranges", ctypes.c_uint64),
    ]


class Driver:
    """`runtime.preprocess.drivers.Driver` for a library built by `compiled`, whose path is the image. The device's
    memory is ours.

    `readable`: address and size of what the kernel may copy from; a test can make it smaller.
    """

    def __init__(self, shared_limit: int = 163 * 1024) -> None:
        self.shared_limit = shared_limit
        self.readable: dict[int, int] = {}
        self._memory: dict[int, np.ndarray] = {}

    def function(self, image: bytes, name: str, shared: int) -> Any:
        function = ctypes.CDLL(image.decode())[f"emulate_{name}"]
        function.restype = ctypes.c_char_p
        return function

    def room(self, size: int) -> int:
        memory = np.full(size + 2 * GUARD + 16, FILL, np.uint8)
        start = GUARD + -memory.ctypes.data % 16
        address = memory.ctypes.data + start
        self.readable[address] = size
        self._memory[address] = memory
        return address

    def mapped(self, size: int) -> tuple[np.ndarray, int]:
        address = self.room(size)
        start = address - self._memory[address].ctypes.data
        return self._memory[address][start : start + size], address

    def use(self) -> None:
        self.used_by = threading.get_ident()

    def wait(self) -> None:
        self.launched = False

    def put(self, address: int, array: np.ndarray) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def launch(self, function: Any, arguments: Any, grid: Any, threads: int, shared: int, stream: Any) -> None:
        self.launched = True
        readable = np.array([*self.readable.items()], np.uint64)
        how = _Launch(*grid, threads, shared, readable.ctypes.data, len(readable))
        failure = function(ctypes.byref(how), *map(ctypes.c_void_p, arguments))
        if failure:
            raise EmulationError(failure.decode())
        for address, memory in self._memory.items():
            start = address - memory.ctypes.data
            size = len(memory) - 2 * GUARD - 16
            if (memory[:start] != FILL).any() or (memory[start + size :] != FILL).any():
                raise EmulationError("a write outside the results")


def compiled(folder: Path, changes: str = "", **macros: int) -> bytes:
    """device.cu as a library, as an image for `Driver`. `changes`: lines of C++ before it; `macros`: as in
    build.fatbin."""
    (folder / "cuda_pipeline.h").touch()  # emulated_cuda.h has what device.cu needs of it
    main, out = folder / "main.cpp", folder / "emulated.so"
    main.write_text(MAIN.format(changes=changes))
    assert COMPILER is not None
    command = [
        COMPILER,
        *(f for f in build.FLAGS if not f.startswith("-O")),
        "-O2",
        *(f"-DWARP_{k}={v}" for k, v in macros.items()),
        f"-I{folder}",
        f"-I{Path(__file__).parent}",
        f"-I{build.HERE}",
        str(main),
        "-o",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return str(out).encode()


def noise(device, seed=0):
    """Fill the frames, and what lies between their rows."""
    rng = np.random.default_rng(seed)
    for buffer in device._buffers:
        buffer[:] = rng.integers(0, 256, buffer.shape, np.uint8)


def launched(warps, image, *, driver=None, tuning=Tuning(), mapped=True):
    """A pass over frames of noise, on the emulator; fails unless every result is the host kernel's, byte for byte."""
    tuning = dataclasses.replace(tuning, image=image)
    device = DeviceWarp(warps, mapped=mapped, driver=driver or Driver(), tuning=tuning)
    noise(device)
    device.upload()
    device.launch()
    wanted = [warp(frame) for warp, frame in zip(warps, device.frames)]
    equal = [want.tobytes() == ctypes.string_at(at, want.nbytes) for want, at in zip(wanted, device.out)]
    assert all(equal), f"other pixels than the host's in frames {[k for k, same in enumerate(equal) if not same]}"
    return device


# The output looks past all edges of the picture: windows reach its last row and column.
SMALL = camera(66, 50, 60), camera(17, 13, 14)
NORMAL: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
FAULTS = ("none", "no barrier", "waits for too little", "a lane leaves early")
FAULTY = """
extern "C" { int fault = 0; }
#define __syncthreads() (fault == 1 ? (void)0 : __syncthreads())
#define __pipeline_wait_prior(n) __pipeline_wait_prior((n) + (fault == 2))
#define __shfl_xor_sync(mask, value, distance) \\
  (fault == 3 && threadIdx.x == 3 ? 0u : __shfl_xor_sync(mask, value, distance))
"""
