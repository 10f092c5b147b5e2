"""Two ways to start the pre-processing kernel: the CUDA driver by ctypes, which the loops use, and pycuda.

Source: CUDA Driver API reference (module, memory and execution management); pycuda.driver.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_size_t, c_uint, c_uint64, c_void_p
from typing import Any, Protocol

import numpy as np

from runtime.engines.cuda import Cuda
from runtime.preprocess.build import KernelError

DEVICEMAP, MAX_DYNAMIC_SHARED, SHARED_OPTIN = 2, 8, 97  # CU_MEMHOSTALLOC_, CU_FUNC_ATTRIBUTE_, CU_DEVICE_ATTRIBUTE_


class Driver(Protocol):
    """What is needed of CUDA. Addresses are the device's; `shared_limit` is in bytes a block."""

    shared_limit: int

    def function(self, image: bytes, name: str, shared: int) -> Any: ...
    def mapped(self, size: int) -> tuple[np.ndarray, int]: ...
    def room(self, size: int) -> int: ...
    def put(self, address: int, array: np.ndarray) -> None: ...
    def launch(
        self, function: Any, arguments: Sequence[int], grid: tuple[int, int], threads: int, shared: int, stream: Any
    ) -> None: ...
    def use(self) -> None: ...
    def wait(self) -> None: ...


class Direct(Cuda):
    """`Driver` straight on the CUDA driver: in the context that engines share, for any thread, on an urgent stream of
    its own."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = self.stream(urgent=True)
        self.shared_limit = self.attribute(SHARED_OPTIN)

    def function(self, image: bytes, name: str, shared: int) -> c_void_p:
        module, function = c_void_p(), c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), image)
        self.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        self.call("cuFuncSetAttribute", function, MAX_DYNAMIC_SHARED, shared)
        return function

    def mapped(self, size: int) -> tuple[np.ndarray, int]:
        """uint8[size] that the device can read and write, and where."""
        host, address = c_void_p(), c_uint64()
        self.call("cuMemHostAlloc", ctypes.byref(host), size, DEVICEMAP)
        self.call("cuMemHostGetDevicePointer_v2", ctypes.byref(address), host, 0)
        assert host.value is not None
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(host.value)), address.value

    def room(self, size: int) -> int:
        return self.device_memory(max(size, 1)).value

    def put(self, address: int, array: np.ndarray) -> None:
        self.call("cuMemcpyHtoD_v2", c_uint64(address), c_void_p(array.ctypes.data), c_size_t(array.nbytes))
        self.call("cuCtxSynchronize")  # the queue does not wait for copies from pageable memory

    def launch(
        self, function: Any, arguments: Sequence[int], grid: tuple[int, int], threads: int, shared: int, stream: Any
    ) -> None:
        values = [c_uint64(a) for a in arguments]
        pointers = (c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
        numbers = [c_uint(n) for n in (*grid, 1, threads, 1, 1, shared)]
        self.call("cuLaunchKernel", function, *numbers, stream or self.queue, pointers, c_void_p())

    def wait(self) -> None:
        self.call("cuStreamSynchronize", self.queue)


class Pycuda:
    """`Driver` in the current context of pycuda, for programs that use it. The loops do not."""

    def __init__(self) -> None:
        try:
            import pycuda.driver as cuda
        except ImportError as e:
            raise KernelError("pre-processing on a GPU needs pycuda: run `./build.sh jetson`.") from e
        self._cuda = cuda
        self._keep: list[Any] = []
        limit = cuda.device_attribute.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        self.shared_limit = int(cuda.Context.get_device().get_attribute(limit))

    def function(self, image: bytes, name: str, shared: int) -> Any:
        module = self._cuda.module_from_buffer(image)
        self._keep.append(module)
        function = module.get_function(name)
        function.set_attribute(self._cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
        return function

    def mapped(self, size: int) -> tuple[np.ndarray, int]:
        """uint8[size] that the device can read, and where."""
        array = self._cuda.pagelocked_empty(size, np.uint8, mem_flags=self._cuda.host_alloc_flags.DEVICEMAP)
        return array, int(array.base.get_device_pointer())

    def room(self, size: int) -> int:
        self._keep.append(self._cuda.mem_alloc(size))
        return int(self._keep[-1])

    def put(self, address: int, array: np.ndarray) -> None:
        self._cuda.memcpy_htod(address, array)

    def launch(
        self, function: Any, arguments: Sequence[int], grid: tuple[int, int], threads: int, shared: int, stream: Any
    ) -> None:
        function(*map(np.uintp, arguments), block=(threads, 1, 1), grid=grid, shared=shared, stream=stream)

    def use(self) -> None:
        pass  # the caller's context is current already

    def wait(self) -> None:
        self._cuda.Context.synchronize()
