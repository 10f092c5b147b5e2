"""A TensorRT engine behind the interface of `runtime.engines.onnx`: buffers allocated once, one CUDA graph, a stream
with a priority."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np

from runtime.engines.cuda import CAPTURE_THREAD_LOCAL, Cuda, CudaError
from runtime.engines.onnx import EngineError, TensorSpec, check_feeds, unchanged


def tensorrt() -> Any:
    """The bindings: TensorRT, or TensorRT for RTX on a workstation. Raises EngineError where both are missing."""
    try:
        import tensorrt

        return tensorrt
    except (ImportError, OSError) as e:
        missing = e
    try:
        import tensorrt_rtx  # type: ignore[import-not-found]  # for a workstation; a Jetson has tensorrt
    except (ImportError, OSError):
        raise EngineError(
            f"TensorRT cannot be loaded ({missing}): on a Jetson run `sudo apt-get install python3-libnvinfer` and "
            "./build.sh jetson; with a GeForce RTX card run `pip install tensorrt-rtx polygraphy`."
        ) from missing
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1"  # Polygraphy reads it once, when it is imported: later than this
    return tensorrt_rtx


class TensorRTEngine:
    """Runs a serialised engine with fixed shapes. `run` blocks; `start` and `wait` let the caller work meanwhile.

    Not shared between threads, but may be handed from one to another. `graph` False enqueues copies and kernels one by
    one, to measure what the graph saves. `version_compatible`: the file brings the runtime of the TensorRT that built
    it along, as code for the processor, which is loaded only where it is asked for. `digest`: the SHA-256 that the file
    must have, "" for any. Raises EngineError for a truncated
    file, one built by another TensorRT, missing CUDA, or lack of memory.
    """

    def __init__(
        self,
        path: Path,
        urgent: bool = False,
        cuda: Cuda | None = None,
        graph: bool = True,
        version_compatible: bool = False,
        digest: str = "",
    ):
        trt = tensorrt()
        self._graph: ctypes.c_void_p | None = None
        self.kernels = 0  # that a pass launches; 0 where nothing is recorded
        self._stream: ctypes.c_void_p | None = None
        self._copies: dict[str, tuple[ctypes.c_void_p, ctypes.c_uint64, int]] = {}
        try:
            self._cuda = cuda or Cuda()
        except CudaError as e:
            raise EngineError(f"engine {Path(path).name} cannot be loaded: {e}") from e
        try:
            self._cuda.use()
            self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
            self._runtime.engine_host_code_allowed = version_compatible
            data = unchanged(path, digest) if digest else Path(path).read_bytes()
            self._engine = self._runtime.deserialize_cuda_engine(data)
            if self._engine is None:
                raise EngineError(
                    f"{Path(path).name} is truncated or was built by another TensorRT or for another GPU: run "
                    "`harmowam build`."
                )
            self._context = self._engine.create_execution_context()
            if self._context is None:
                raise EngineError(f"no memory for {Path(path).name}: close other programs, see `free -m`.")
            self._stream = self._cuda.stream(urgent)
            self._allocate(trt)
            # The libraries finish their initialisation in the first pass; it must not happen while a graph is recorded.
            self._enqueue()
            self._cuda.call("cuStreamSynchronize", self._stream)
            if graph:
                self._capture()
        except (CudaError, OSError) as e:
            self._give_up()
            raise EngineError(f"engine {Path(path).name} cannot be loaded: {e}") from e
        except EngineError:
            self._give_up()
            raise

    def _give_up(self) -> None:
        try:
            self.close()
        except CudaError:
            pass  # the first error says more

    def _allocate(self, trt: Any) -> None:
        self.inputs: dict[str, TensorSpec] = {}
        self.outputs: dict[str, TensorSpec] = {}
        self._host: dict[str, np.ndarray] = {}
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            shape = tuple(self._engine.get_tensor_shape(name))
            dtype = np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))).name
            into = self.inputs if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else self.outputs
            into[name] = TensorSpec(shape, dtype)
            address, self._host[name] = self._cuda.pinned(shape, dtype)
            self._host[name].fill(0)  # the first pass runs on it, and stray bytes could be an index out of range
            device = self._cuda.device_memory(self._host[name].nbytes)
            self._copies[name] = (address, device, self._host[name].nbytes)
            if not self._context.set_tensor_address(name, device.value):
                raise EngineError(f"TensorRT refused the memory for '{name}': run `harmowam build` again.")

    def _enqueue(self) -> None:
        for name in self.inputs:
            host, device, size = self._copies[name]
            self._cuda.call("cuMemcpyHtoDAsync_v2", device, host, size, self._stream)
        assert self._stream is not None
        if not self._context.execute_async_v3(self._stream.value):
            raise EngineError("TensorRT could not enqueue the engine: run `harmowam build` again.")
        for name in self.outputs:
            host, device, size = self._copies[name]
            self._cuda.call("cuMemcpyDtoHAsync_v2", host, device, size, self._stream)

    def _capture(self) -> None:
        """Record copies and kernels once; replaying them costs one launch, and all of them take the priority of the
        stream."""
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._cuda.call("cuStreamBeginCapture_v2", self._stream, CAPTURE_THREAD_LOCAL)
        self._enqueue()
        self._cuda.call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        self.kernels = self._cuda.kernels(graph)
        self._cuda.call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, 0)
        self._cuda.call("cuGraphDestroy", graph)
        self._graph = ready

    def start(self, feeds: dict[str, np.ndarray]) -> None:
        """Copy the feeds and begin; returns at once. Raises EngineError for feeds that do not fit."""
        check_feeds(self.inputs, feeds)
        self._cuda.use()
        for name, array in feeds.items():
            np.copyto(self._host[name], array)
        try:
            if self._graph is None:
                self._enqueue()
            else:
                self._cuda.call("cuGraphLaunch", self._graph, self._stream)
        except CudaError as e:
            raise EngineError(f"the GPU refused an engine: {e} Restart the program.") from e

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

    def inspected(self) -> tuple[str, int]:
        """The inspector's JSON about the engine, and the bytes that its execution context needs on the device."""
        trt, inspector = tensorrt(), self._engine.create_engine_inspector()
        said = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        return str(said), int(self._engine.device_memory_size_v2)

    def close(self) -> None:
        """Give memory, graph and stream back; arrays that `wait` returned are gone with them. Closing twice is
        allowed."""
        if self._stream is None:
            return
        self._cuda.use()
        stream, self._stream = self._stream, None
        self._cuda.call("cuStreamSynchronize", stream)
        if self._graph is not None:
            self._cuda.call("cuGraphExecDestroy", self._graph)
            self._graph = None
        self._context = self._engine = self._runtime = None  # the library's own memory goes with its last reference
        for host, device, _ in self._copies.values():
            self._cuda.call("cuMemFree_v2", device)
            self._cuda.call("cuMemFreeHost", host)
        self._copies, self._host = {}, {}
        self._cuda.call("cuStreamDestroy_v2", stream)
