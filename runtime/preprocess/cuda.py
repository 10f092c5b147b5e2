"""The same pass on a GPU: `GpuPass` is what the loops use (`preprocess = "gpu"` of a robot file), `DeviceWarp` what it
launches.

`DeviceWarp` has run on an H200 through the CUDA driver (`benchmarks/preprocess_gpu.py`), not on an Orin and not through
pycuda. Frames come in pinned, mapped host memory: on a Tegra the GPU reads it where it lies (I/O-coherent
since Xavier), so nothing is copied; on a discrete GPU it reads it over the bus. Host and device share `warp.cuh`, and
sums are integers: equal bit for bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.engines.cuda import CudaError
from runtime.preprocess import LAYOUTS, Warp, _Pass
from runtime.preprocess.build import KernelError, fatbin
from runtime.preprocess.drivers import Direct, Driver, Pycuda

SHARED = 72 * 1024  # bytes a block should keep to, so that three run on a Hopper's multiprocessor and two on an Orin's
THREADS = 128  # a block of the plain kernel


@dataclass(frozen=True)
class Tuning:
    """How the work is cut up; the last three belong together.

    `tiles`: output pixels of a block, width and height, largest first: what lies in two tiles' sources is copied twice.
    `frames` of one camera that a block makes one after another: the weights are read once for them. `lanes` and
    `stages` as compiled into `image` (a fatbin of device.cu; None: the usual one).
    """

    tiles: tuple[tuple[int, int], ...] = ((16, 4), (8, 4), (8, 2), (8, 1))
    frames: int = 8
    lanes: int = 4
    stages: int = 2
    image: bytes | None = None


class _Plan(ctypes.Structure):
    """Mirrors `Plan` in device.cu."""

    _fields_ = [
        *((n, ctypes.c_uint64) for n in ("weights", "offset", "total", "box")),
        ("scale", ctypes.c_float * 3),
        ("bias", ctypes.c_float * 3),
        *((n, ctypes.c_int32) for n in ("format", "type", "src_h", "dst_w", "dst_h", "tile_w", "tile_h", "groups")),
        *((n, ctypes.c_int32) for n in ("items", "chunks", "rows")),
    ]


_FRAME = np.dtype([("src", np.uint64), ("out", np.uint64), ("stride", np.int32), ("camera", np.int32)])
_JOB = np.dtype([("camera", np.int32), ("first", np.int32), ("count", np.int32)])


@dataclass(frozen=True)
class Windows:
    """A footprint table for the device: windows start at a multiple of four columns and are whole items of 4 pixels by
    2 rows.

    `corner` int64[n,2]: first column and row; `weights` uint16[n,pairs,groups,4,2]: pair of rows, group of columns,
    column, row.
    """

    corner: np.ndarray
    weights: np.ndarray

    @staticmethod
    def of(warp: Warp) -> Windows:
        (kw, kh), origin = warp.window, warp._table.origin.astype(np.int64)
        wide = (warp.src.width + 3) // 4  # groups in a row
        groups = int((origin[:, 0] % 4 + kw + 3).max()) // 4
        # A window that would leave its row starts earlier.
        x = np.maximum(np.minimum(origin[:, 0] // 4, wide - groups), 0) * 4
        # Two rows of NV12 share their chroma.
        y = origin[:, 1] // 2 * 2 if _layout(warp) == "nv12" else origin[:, 1]
        pairs = int((origin[:, 1] - y).max() + kh + 1) // 2
        spread = np.zeros((len(x), 2 * pairs, 4 * groups), np.uint16)
        n, j, i = np.ogrid[: len(x), :kh, :kw]
        dx, dy = (origin[:, 0] - x)[:, None, None], (origin[:, 1] - y)[:, None, None]
        spread[n, j + dy, i + dx] = warp.weights.reshape(-1, kh, kw)
        items = spread.reshape(-1, pairs, 2, groups, 4).transpose(0, 1, 3, 4, 2)
        return Windows(np.stack([x, y], 1), np.ascontiguousarray(items))


@dataclass(frozen=True)
class Tiling:
    """What a block stages for each tile: `rows` of `chunks` 16-byte pieces from `box` int32[tiles,2], byte in a row and
    row.

    `offset` uint32[n]: where a window starts in there, bytes. A staged tile of NV12 has its chroma row behind two luma
    rows. `pitch`: bytes from a row of the frame to the next, at least.
    """

    chunks: int
    rows: int
    pitch: int
    box: np.ndarray
    offset: np.ndarray

    @staticmethod
    def of(warp: Warp, windows: Windows, tile: tuple[int, int]) -> Tiling:
        w, h = warp.dst.width, warp.dst.height
        v, u = np.divmod(np.arange(w * h), w)
        number = v // tile[1] * -(-w // tile[0]) + u // tile[0]
        pairs, groups = windows.weights.shape[1:3]
        unit = {"yuyv": 8, "nv12": 4}.get(_layout(warp), 12)  # bytes of four pixels
        # An output pixel that sees nothing has its window at the picture's corner: it must not stretch its tile's box.
        seen: np.ndarray = windows.weights.reshape(w * h, -1).max(1) > 0
        start = np.stack([windows.corner[:, 0] // 4 * unit, windows.corner[:, 1]], 1)
        low = np.full((int(number.max()) + 1, 2), 1 << 30, np.int64)
        np.minimum.at(low, number[seen], start[seen])
        low[low[:, 0] == 1 << 30] = 0
        low[:, 0] -= low[:, 0] % 16
        size = np.array([groups * unit, 2 * pairs])
        high = low + size
        np.maximum.at(high, number[seen], start[seen] + size)
        chunks, rows = -(-(high - low).max(0) // [16, 1])
        # The last group of a row may reach beyond the picture: the pitch has room for it. A box that would not fit
        # starts earlier.
        pitch = int(max(-(-warp._row // 16), -(-high[:, 0].max() // 16))) * 16
        low[:, 0] = np.minimum(low[:, 0], pitch - 16 * chunks)
        place = np.where(seen[:, None], start - low[number], 0)
        if _layout(warp) == "nv12":
            place[:, 1], rows = place[:, 1] // 2 * 3, rows // 2 * 3
        offset = place[:, 1] * chunks * 16 + place[:, 0]
        return Tiling(int(chunks), int(rows), pitch, low.astype(np.int32), offset.astype(np.uint32))

    @property
    def size(self) -> int:
        return 16 * self.chunks * self.rows


def _layout(warp: Warp) -> str:
    return LAYOUTS[warp._pass.format]


def _bytes(structures: Sequence[ctypes.Structure]) -> np.ndarray:
    return np.frombuffer(b"".join(map(bytes, structures)), np.uint8)


class DeviceWarp:
    """Several frames in one launch: one `Warp` a frame (cameras may repeat). Needs a current CUDA context.

    `frames` are the buffers to write pictures into, uint8 in the shape of the layout with rows a multiple of 16 bytes
    apart: pinned and mapped or, without `mapped`, host copies that `upload` brings to the device. `sources` and `out`:
    device addresses of the frames and of the results, NCHW each; with `answers` results come into mapped memory, too:
    `results`. `tile`: output pixels of a block; None: the plain kernel.
    """

    def __init__(
        self,
        warps: Sequence[Warp],
        *,
        mapped: bool = True,
        answers: bool = False,
        driver: Driver | None = None,
        tuning: Tuning = Tuning(),
    ):
        self._driver = driver or Pycuda()
        self._mapped = mapped
        self.results: list[np.ndarray] = []
        self._tables: dict[int, int] = {}
        # Warps of equal passes are one camera.
        cameras = {bytes(w._pass): w for w in warps}
        numbers = [list(cameras).index(bytes(w._pass)) for w in warps]
        unique = list(cameras.values())
        windows = self._windows(unique)
        self.tile, tilings = self._tilings(unique, windows, tuning)
        self.frames: list[np.ndarray] = []
        self._buffers: list[np.ndarray] = []
        records = np.zeros(len(warps), _FRAME)
        for k, (warp, number) in enumerate(zip(warps, numbers)):
            pitch = tilings[number].pitch if tilings else -(-warp._row // 16) * 16
            size = pitch * warp._frame_shape[0]
            buffer, address = (
                self._driver.mapped(size) if mapped else (np.empty(size, np.uint8), self._driver.room(size))
            )
            self._buffers.append(buffer)
            self.frames.append(np.lib.stride_tricks.as_strided(buffer, warp._frame_shape, (pitch, *warp._inner)))
            size = int(np.prod(warp._out_shape)) * np.dtype(warp.dtype).itemsize
            if answers:
                seen, out = self._driver.mapped(size)
                self.results.append(seen.view(warp.dtype).reshape(warp._out_shape))
            else:
                out = self._driver.room(size)
            records[k] = address, out, pitch, number
        self.sources, self.out = records["src"].tolist(), records["out"].tolist()
        image = tuning.image or fatbin().read_bytes()
        if self.tile is None:
            passes = [self._plain(w) for w in unique]
            self._arguments = [self._put(_bytes(passes)), self._put(records)]
            self._shared, self._threads = 0, THREADS
            self._grid = (-(-max(w._pass.n for w in unique) // THREADS), len(warps))
            self._function = self._driver.function(image, "warp_any", 0)
            return
        ordered = records[np.argsort(records["camera"], kind="stable")]
        jobs = []
        for number in range(len(unique)):
            first, after = np.searchsorted(ordered["camera"], [number, number + 1])
            jobs += [(number, k, min(tuning.frames, after - k)) for k in range(first, after, tuning.frames)]
        plans = [self._plan(w, t, c, self.tile) for w, t, c in zip(unique, windows, tilings)]
        self._arguments = [self._put(_bytes(plans)), self._put(ordered), self._put(np.array(jobs, _JOB))]
        self._shared = tuning.stages * max(t.size for t in tilings)
        self._threads = self.tile[0] * self.tile[1] * tuning.lanes
        self._grid = (max(len(t.box) for t in tilings), len(jobs))
        self._function = self._driver.function(image, "warp_tiles", self._shared)

    @staticmethod
    def _windows(cameras: Sequence[Warp]) -> list[Windows]:
        """One for each camera; cameras of the same geometry share it."""
        known: dict[tuple[int, bool], Windows] = {}
        for warp in cameras:
            key = id(warp._table), _layout(warp) == "nv12"
            if key not in known:
                known[key] = Windows.of(warp)
        return [known[id(w._table), _layout(w) == "nv12"] for w in cameras]

    def _tilings(
        self, cameras: Sequence[Warp], windows: Sequence[Windows], tuning: Tuning
    ) -> tuple[tuple[int, int] | None, list[Tiling]]:
        """The largest tile whose source fits for every camera; None: not even the smallest does."""
        for limit in (min(SHARED, self._driver.shared_limit), self._driver.shared_limit):
            for tile in tuning.tiles:
                cut = [Tiling.of(w, t, tile) for w, t in zip(cameras, windows)]
                if tuning.stages * max(t.size for t in cut) <= limit:
                    return tile, cut
        return None, []

    def _plan(self, warp: Warp, windows: Windows, cut: Tiling, tile: tuple[int, int]) -> _Plan:
        pairs, groups = windows.weights.shape[1:3]
        total = windows.weights.reshape(warp._pass.n, -1).sum(1, dtype=np.uint32)
        p = warp._pass
        return _Plan(
            self._shared_table(windows.weights),
            self._put(cut.offset),
            self._put(total),
            self._put(cut.box),
            p.scale,
            p.bias,
            p.format,
            p.type,
            p.src_h,
            warp.dst.width,
            warp.dst.height,
            *tile,
            groups,
            pairs * groups,
            cut.chunks,
            cut.rows,
        )

    def _plain(self, warp: Warp) -> _Pass:
        out = _Pass.from_buffer_copy(warp._pass)
        out.origin, out.weights, out.packed = (
            self._shared_table(warp._table.origin),
            self._shared_table(warp.weights),
            None,
        )
        return out

    def _shared_table(self, array: np.ndarray) -> int:
        """Address of an array that may be several cameras': put there once."""
        if id(array) not in self._tables:
            self._tables[id(array)] = self._put(array)
        return self._tables[id(array)]

    def _put(self, array: np.ndarray) -> int:
        address = self._driver.room(array.nbytes)
        self._driver.put(address, np.ascontiguousarray(array))
        return address

    def upload(self) -> None:
        """Copy `frames` to the device; with `mapped` the device reads them where they are."""
        if not self._mapped:
            for buffer, address in zip(self._buffers, self.sources):
                self._driver.put(address, buffer)

    def launch(self, stream: Any = None) -> None:
        """Queue the pass over all frames; results are at `out` when `stream` has got there."""
        self._driver.launch(self._function, self._arguments, self._grid, self._threads, self._shared, stream)


class GpuPass:
    """`runtime.preprocess.warp_all` on the GPU: frames are copied into pinned memory that the GPU reads; results are
    read where it wrote them.

    Any thread may call it, one at a time. The result of the first call is compared with the host's, bit by bit, so that
    no arm is driven by a kernel that this GPU computes wrongly. Raises KernelError for that, without nvcc or a GPU, and
    where the GPU fails.
    """

    def __init__(self, warps: Sequence[Warp], driver: Driver | None = None, tuning: Tuning = Tuning()):
        self._warps, self._compared = list(warps), False
        try:
            self._driver = driver or Direct()
            self._device = DeviceWarp(self._warps, answers=True, driver=self._driver, tuning=tuning)
        except CudaError as e:
            raise KernelError(
                f'pre-processing on the GPU cannot start: {e} Or set [compute] preprocess to "cpu" in the robot file.'
            ) from e

    def __call__(self, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
        """A frame of each warp's camera to `dtype`[3,h,w] each, overwritten by the next call; raises ValueError for a
        misfit."""
        for warp, frame in zip(self._warps, frames, strict=True):
            warp.check(frame)
        for buffer, frame in zip(self._device.frames, frames, strict=True):
            np.copyto(buffer, frame)
        try:
            self._driver.use()
            self._device.launch()
            self._driver.wait()
        except CudaError as e:
            raise KernelError(f"pre-processing on the GPU failed: {e} Restart the program.") from e
        if not self._compared:
            self._compare(frames)
        return self._device.results

    def _compare(self, frames: Sequence[np.ndarray]) -> None:
        for warp, frame, got in zip(self._warps, frames, self._device.results, strict=True):
            want = warp(frame)
            wrong = int((got.view(np.uint8) != want.view(np.uint8)).reshape(want.size, -1).any(1).sum())
            if wrong:
                raise KernelError(
                    f"the GPU makes {wrong} of {want.size} numbers of camera '{warp.src.name}' otherwise than the "
                    "host: set "
                    '[compute] preprocess to "cpu" in the robot file, and run `python -m benchmarks.preprocess_gpu`.'
                )
        self._compared = True
