"""A TensorRT engine behind the interface of `runtime.engine`: buffers allocated once, one CUDA graph, a stream with a priority."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

from runtime.cuda import CAPTURE_THREAD_LOCAL, Cuda, CudaError
from runtime.engine import EngineError, TensorSpec, check_feeds


def tensorrt() -> Any:
    """The bindings; raises EngineError where they are missing."""
    try:
        import tensorrt
    except (ImportError, OSError) as e:
        raise EngineError(
            f"TensorRT cannot be loaded ({e}): on a Jetson run `sudo apt-get install python3-libnvinfer` and ./build.sh jetson."
        ) from e
    return tensorrt


class TensorRTEngine:
    """Runs a serialised engine with fixed shapes. `run` blocks; `start` and `wait` let the caller work meanwhile.

    Not shared between threads, but may be handed from one to another. Raises EngineError for a truncated file, one built by
    another TensorRT, missing CUDA, or lack of memory.
    """

    def __init__(self, path: Path, urgent: bool = False, cuda: Cuda | None = None):
        trt = tensorrt()
        self._graph: ctypes.c_void_p | None = None
        try:
            self._cuda = cuda or Cuda()
            self._cuda.use()
            self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
            self._engine = self._runtime.deserialize_cuda_engine(Path(path).read_bytes())
            if self._engine is None:
                raise EngineError(
                    f"{Path(path).name} is truncated or was built by another TensorRT or for another GPU: run `harmowam build`."
                )
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise EngineError(f"no memory for {Path(path).name}: close other programs, see `free -m`.")
            self._stream = self._cuda.stream(urgent)
            self._allocate(trt)
            self._capture()
        except (CudaError, OSError) as e:
            raise EngineError(f"engine {Path(path).name} cannot be loaded: {e}") from e

    def _allocate(self, trt: Any) -> None:
        self.inputs: dict[str, TensorSpec] = {}
        self.outputs: dict[str, TensorSpec] = {}
        self._host: dict[str, np.ndarray] = {}
        self._copies: dict[str, tuple[ctypes.c_void_p, ctypes.c_uint64, int]] = {}
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            shape = tuple(self._engine.get_tensor_shape(name))
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))).name
            into = self.inputs if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else self.outputs
            into[name] = TensorSpec(shape, dtype)
            address, self._host[name] = self._cuda.pinned(shape, dtype)
            device = self._cuda.device_memory(self._host[name].nbytes)
            self._copies[name] = (address, device, self._host[name].nbytes)
            self._context.set_tensor_address(name, device.value)

    def _enqueue(self) -> None:
        for name in self.inputs:
            host, device, size = self._copies[name]
            self._cuda.call("cuMemcpyHtoDAsync_v2", device, host, size, self._stream)
        if not self._context.execute_async_v3(self._stream.value):
            raise EngineError("TensorRT could not enqueue the engine: run `harmowam build` again.")
        for name in self.outputs:
            host, device, size = self._copies[name]
            self._cuda.call("cuMemcpyDtoHAsync_v2", host, device, size, self._stream)

    def _capture(self) -> None:
        """Record copies and kernels once; replaying them costs one launch. The first pass outside settles lazy initialisation."""
        self._enqueue()
        self._cuda.call("cuStreamSynchronize", self._stream)
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._cuda.call("cuStreamBeginCapture_v2", self._stream, CAPTURE_THREAD_LOCAL)
        self._enqueue()
        self._cuda.call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        self._cuda.call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, 0)
        self._cuda.call("cuGraphDestroy", graph)
        self._graph = ready

    def start(self, feeds: dict[str, np.ndarray]) -> None:
        """Copy the feeds and begin; returns at once. Raises EngineError for feeds that do not fit."""
        check_feeds(self.inputs, feeds)
        self._cuda.use()
        for name, array in feeds.items():
            np.copyto(self._host[name], array)
        self._cuda.call("cuGraphLaunch", self._graph, self._stream)

    def wait(self) -> dict[str, np.ndarray]:
        """Outputs of what was started, in place until the next `start`."""
        self._cuda.use()
        try:
            self._cuda.call("cuStreamSynchronize", self._stream)
        except CudaError as e:
            raise EngineError(f"the GPU failed while an engine ran: {e} Restart the program.") from e
        return {name: self._host[name] for name in self.outputs}

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.start(feeds)
        return self.wait()

    def close(self) -> None:
        """Give memory, graph and stream back."""
        self._cuda.use()
        if self._graph is not None:
            self._cuda.call("cuGraphExecDestroy", self._graph)
            self._graph = None
        for host, device, _ in self._copies.values():
            self._cuda.call("cuMemFree_v2", device)
            self._cuda.call("cuMemFreeHost", host)
        self._copies, self._host = {}, {}
        self._cuda.call("cuStreamDestroy_v2", self._stream)
