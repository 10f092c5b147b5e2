"""The same pass on a GPU, through pycuda's driver interface. UNTESTED on a GPU so far: nothing else of the runtime imports it.

Frames come in pinned, mapped host memory: on a Tegra the GPU reads it where it lies (I/O-coherent since Xavier), so nothing is
copied; on a discrete GPU it reads it over the bus. Host and device share `warp.cuh`, and sums are integers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from runtime.preprocess import Warp
from runtime.preprocess.build import KernelError, fatbin

THREADS = 128  # a block; 96x96 outputs are 72 blocks


class DeviceWarp:
    """Several frames in one launch: one `Warp` a frame (cameras may repeat). Needs a current CUDA context.

    `frames` are the buffers to write pictures into (pinned, mapped), `out` the device addresses of the results, NCHW each.
    """

    def __init__(self, warps: Sequence[Warp]):
        try:
            import pycuda.driver as cuda
        except ImportError as e:
            raise KernelError("pre-processing on a GPU needs pycuda: run `./build.sh jetson`.") from e
        self._cuda = cuda
        self._function = cuda.module_from_buffer(fatbin().read_bytes()).get_function("warp_frames")
        self._keep: list[Any] = []
        tables: dict[int, tuple[int, int]] = {}
        self.frames, self.out = [], []
        passes = (type(warps[0]._pass) * len(warps))()
        for k, warp in enumerate(warps):
            key = id(warp._table)
            if key not in tables:
                tables[key] = (self._put(warp._table.origin), self._put(warp._table.weights))
            ctypes.memmove(ctypes.addressof(passes[k]), ctypes.addressof(warp._pass), ctypes.sizeof(warp._pass))
            passes[k].origin, passes[k].weights = tables[key]
            passes[k].packed = None
            flags = cuda.host_alloc_flags.DEVICEMAP
            self.frames.append(cuda.pagelocked_empty(warp._frame_shape, np.uint8, mem_flags=flags))
            room = cuda.mem_alloc(int(np.prod(warp._out_shape)) * np.dtype(warp.dtype).itemsize)
            self._keep.append(room)
            self.out.append(int(room))
        self._sources = [int(f.base.get_device_pointer()) for f in self.frames]
        strides = np.array([f.strides[0] for f in self.frames], np.int32)
        self._arguments = [
            np.uintp(self._put(np.frombuffer(bytes(passes), np.uint8))), np.uintp(self._put(np.array(self._sources, np.uint64))),
            np.uintp(self._put(strides)), np.uintp(self._put(np.array(self.out, np.uint64))),
        ]  # fmt: skip
        largest = max(int(np.prod(w._out_shape[1:])) for w in warps)
        self._grid = ((largest + THREADS - 1) // THREADS, len(warps))

    def _put(self, array: np.ndarray) -> int:
        room = self._cuda.to_device(np.ascontiguousarray(array))
        self._keep.append(room)
        return int(room)

    def launch(self, stream: Any = None) -> None:
        """Queue the pass over all frames; results are at `out` when `stream` has got there."""
        self._function(*self._arguments, block=(THREADS, 1, 1), grid=self._grid, stream=stream)
