"""The functions of the CUDA driver that an engine needs, by ctypes: pycuda has neither stream priorities nor
graphs.

Source: CUDA Driver API reference, sections 6.9 (memory), 6.18 (streams), 6.24 (graphs). Present from CUDA 12.0 on
(JetPack 6 has 12.6).
"""

from __future__ import annotations

import ctypes
from ctypes import c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

import numpy as np

NON_BLOCKING = 1
CAPTURE_THREAD_LOCAL = 1
PORTABLE = 1
BLOCKING_SYNC = 4
CONTEXT_ACTIVE = 708
_FUNCTIONS: dict[str, list[Any]] = {
    "cuInit": [c_uint],
    "cuDeviceGet": [c_void_p, c_int],
    "cuDeviceGetAttribute": [c_void_p, c_int, c_int],
    "cuDeviceGetName": [ctypes.c_char_p, c_int, c_int],
    "cuDevicePrimaryCtxSetFlags_v2": [c_int, c_uint],
    "cuDevicePrimaryCtxRetain": [c_void_p, c_int],
    "cuCtxSetCurrent": [c_void_p],
    "cuCtxGetStreamPriorityRange": [c_void_p, c_void_p],
    "cuStreamCreateWithPriority": [c_void_p, c_uint, c_int],
    "cuStreamSynchronize": [c_void_p],
    "cuStreamDestroy_v2": [c_void_p],
    "cuMemAlloc_v2": [c_void_p, c_size_t],
    "cuMemFree_v2": [c_uint64],
    "cuMemHostAlloc": [c_void_p, c_size_t, c_uint],
    "cuMemFreeHost": [c_void_p],
    "cuMemcpyHtoDAsync_v2": [c_uint64, c_void_p, c_size_t, c_void_p],
    "cuMemcpyDtoHAsync_v2": [c_void_p, c_uint64, c_size_t, c_void_p],
    "cuStreamBeginCapture_v2": [c_void_p, c_int],
    "cuStreamEndCapture": [c_void_p, c_void_p],
    "cuGraphGetNodes": [c_void_p, c_void_p, c_void_p],
    "cuGraphNodeGetType": [c_void_p, c_void_p],
    "cuGraphInstantiateWithFlags": [c_void_p, c_void_p, ctypes.c_ulonglong],
    "cuGraphLaunch": [c_void_p, c_void_p],
    "cuGraphExecDestroy": [c_void_p],
    "cuGraphDestroy": [c_void_p],
}
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_KERNEL_NODE = 0  # CU_GRAPH_NODE_TYPE_KERNEL
_MULTIPROCESSORS = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT


class CudaError(Exception):
    """A call that the CUDA driver refused; says which and with what number (`code`, 0 where no call was made)."""

    code = 0


class Cuda:
    """One process's use of device 0, in its primary context. Raises CudaError where there is no driver or no device."""

    def __init__(self, library: str = "libcuda.so.1"):
        try:
            self._lib = ctypes.CDLL(library)
        except OSError as e:
            raise CudaError(f"no CUDA driver ({e}): run on a Jetson or another machine with an NVIDIA GPU.") from e
        for name, arguments in _FUNCTIONS.items():
            getattr(self._lib, name).argtypes = arguments
        self.call("cuInit", 0)
        device, context = c_int(), c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self._device = device.value
        self._wait_asleep()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._context = context
        self.use()

    def _wait_asleep(self) -> None:
        """Waiting threads sleep instead of spinning: a loop that spins under SCHED_FIFO starves ordinary work on its
        core."""
        try:
            self.call("cuDevicePrimaryCtxSetFlags_v2", self._device, BLOCKING_SYNC)
        except CudaError as e:
            if e.code != CONTEXT_ACTIVE:  # already in use by another engine, whose setting stays
                raise

    def call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._lib, name)(*arguments)
        if code:
            hint = ": not enough memory, close other programs" if code == 2 else ""
            error = CudaError(f"{name} failed with CUDA error {code}{hint}.")
            error.code = code
            raise error

    def use(self) -> None:
        """Make the context current in the calling thread."""
        self.call("cuCtxSetCurrent", self._context)

    def name(self) -> str:
        text = ctypes.create_string_buffer(100)
        self.call("cuDeviceGetName", text, 100, self._device)
        return text.value.decode()

    def capability(self) -> tuple[int, int]:
        return self.attribute(_MAJOR), self.attribute(_MINOR)

    def multiprocessors(self) -> int:
        """How many there are now: some power modes of a Jetson switch a part of them off."""
        return self.attribute(_MULTIPROCESSORS)

    def attribute(self, number: int) -> int:
        value = c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(value), number, self._device)
        return value.value

    def stream(self, urgent: bool) -> c_void_p:
        """A stream of the highest or lowest priority."""
        least, greatest, out = c_int(), c_int(), c_void_p()
        self.call("cuCtxGetStreamPriorityRange", ctypes.byref(least), ctypes.byref(greatest))
        self.call(
            "cuStreamCreateWithPriority", ctypes.byref(out), NON_BLOCKING, greatest.value if urgent else least.value
        )
        return out

    def kernels(self, graph: c_void_p) -> int:
        """How many kernels a graph launches."""
        count, kind, found = c_size_t(), c_int(), 0
        self.call("cuGraphGetNodes", graph, None, ctypes.byref(count))
        nodes = (c_void_p * count.value)()
        self.call("cuGraphGetNodes", graph, nodes, ctypes.byref(count))
        for node in nodes:
            self.call("cuGraphNodeGetType", node, ctypes.byref(kind))
            found += kind.value == _KERNEL_NODE
        return found

    def device_memory(self, size: int) -> c_uint64:
        out = c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(out), size)
        return out

    def pinned(self, shape: tuple[int, ...], dtype: str) -> tuple[c_void_p, np.ndarray]:
        """Page-locked host memory and an array over it; on a Jetson it is the same DRAM that the GPU reads."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape)) * kind.itemsize
        out = c_void_p()
        self.call("cuMemHostAlloc", ctypes.byref(out), size, PORTABLE)
        assert out.value is not None
        raw = (ctypes.c_char * size).from_address(out.value)
        return out, np.ndarray(shape, kind, buffer=memoryview(raw))
