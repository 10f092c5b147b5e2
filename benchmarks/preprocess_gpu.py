"""The pre-processing kernel on an NVIDIA GPU: first that it gives the host's pixels bit for bit, then how near it is to
memory's speed.

`python -m benchmarks.preprocess_gpu` does both; `--small` one small launch of every kind, for compute-sanitizer;
`--pycuda` the check through pycuda; `--variants` times other tiles and constants of the kernel too. Needs nvcc and a
driver.

The bound is the time in which the fewest bytes can be moved: the 32-byte sectors that some footprint touches, the
footprint table once, the output once, at the rate of a large copy on the device (bytes read and written).
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_float, c_size_t, c_uint64, c_void_p
from typing import Any

import numpy as np

from calibration.camera import Camera
from runtime.engines.cuda import CAPTURE_THREAD_LOCAL
from runtime.preprocess import DTYPES, LAYOUTS, Warp
from runtime.preprocess.build import fatbin
from runtime.preprocess.cuda import DeviceWarp, Tuning
from runtime.preprocess.drivers import Direct, Pycuda

L2_BYTES = 38  # CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE
POISON = 0xCC
NORMAL: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

# Name: macros of device.cu, then the (tile, frames of a block) to try with them.
VARIANTS: dict[str, tuple[dict[str, int], list[tuple[tuple[int, int], int]]]] = {
    "2 stages": ({}, [(t, n) for t in ((16, 4), (8, 8), (32, 2), (8, 4), (16, 2)) for n in (4, 8, 16, 32)]),
    "3 stages": ({"STAGES": 3, "BLOCKS": 2}, [(t, n) for t in ((16, 4), (8, 4)) for n in (8, 16, 32)]),
    "2 blocks": ({"BLOCKS": 2}, [((16, 4), 8), ((16, 4), 16)]),
    "8 lanes": ({"LANES": 8, "HELD": 4, "BLOCKS": 3}, [(t, n) for t in ((8, 4), (16, 2)) for n in (8, 16, 32)]),
}


def camera(width: int, height: int, D: Sequence[float] = (), focal: float | None = None) -> Camera:
    focal = focal or height * 1.375
    K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
    return Camera("front", width, height, K, np.array(D))


def central(src: Camera, size: int = 96) -> Camera:
    """The training camera that sees the central square."""
    return camera(size, size, (), src.K[0, 0] * size / src.height)


class Timed(Direct):
    """The driver that the loops use, with events and copies to measure by."""

    def get(self, address: int, array: np.ndarray) -> None:
        self.call("cuMemcpyDtoH_v2", c_void_p(array.ctypes.data), c_uint64(address), c_size_t(array.nbytes))

    def copy(self, to: int, source: int, size: int) -> None:
        self.call("cuMemcpyDtoDAsync_v2", c_uint64(to), c_uint64(source), c_size_t(size), self.queue)

    def graph(self, work: Sequence[Callable[[], None]]) -> Callable[[], None]:
        """One call that queues all of `work`: launches by Python take longer than a frame's kernel."""
        graph, executable = c_void_p(), c_void_p()
        self.call("cuStreamBeginCapture_v2", self.queue, CAPTURE_THREAD_LOCAL)
        for one in work:
            one()
        self.call("cuStreamEndCapture", self.queue, ctypes.byref(graph))
        self.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
        return lambda: self.call("cuGraphLaunch", executable, self.queue)

    def median_us(self, work: Callable[[], None], rounds: int) -> float:
        """Median time of a call by events before and after it on the queue."""
        start, end, ms = c_void_p(), c_void_p(), c_float()
        for event in (start, end):
            self.call("cuEventCreate", ctypes.byref(event), 0)
        times = []
        for _ in range(rounds + 3):
            self.call("cuEventRecord", start, self.queue)
            work()
            self.call("cuEventRecord", end, self.queue)
            self.call("cuEventSynchronize", end)
            self.call("cuEventElapsedTime", ctypes.byref(ms), start, end)
            times.append(ms.value * 1e3)
        return float(np.median(times[3:]))


def differences(name: str, warps: Sequence[Warp], driver: Any, **options: Any) -> int:
    """Run random frames through both; prints and returns the number of outputs that are not equal bit for bit."""
    rng = np.random.default_rng(len(warps))
    device = DeviceWarp(warps, driver=driver, **options)
    for frame in device.frames:
        frame[...] = rng.integers(0, 256, frame.shape, np.uint8)
    device.upload()
    for warp, address in zip(warps, device.out):
        size = int(np.prod(warp._out_shape)) * np.dtype(warp.dtype).itemsize
        driver.put(address, np.full(size, POISON, np.uint8))
    device.launch()
    driver.wait()
    wrong = 0
    for warp, frame, address in zip(warps, device.frames, device.out):
        got, want = np.empty(warp._out_shape, warp.dtype), warp(frame)
        driver.get(address, got)
        wrong += got.tobytes() != want.tobytes()
    print(f"{name:44}{len(warps):4} frames, tile {device.tile or 'none'!s:8}{wrong:4} differ", flush=True)
    return wrong


def geometries() -> dict[str, tuple[Camera, Camera]]:
    barrel = (-0.28, 0.08, 0.001, -0.0005, 0.01)
    fisheye = dataclasses.replace(camera(640, 480, (0.05, -0.02, 0.004, -0.001), 280), model="fisheye")
    plain = {f"{w}x{h}": camera(w, h) for w, h in ((320, 240), (640, 480), (1280, 720), (1920, 1080))}
    return {
        **{k: (c, central(c)) for k, c in plain.items()},
        "distorted 640x480": (camera(640, 480, barrel, 500), camera(96, 96, (), 95)),
        "distorted 1920x1080": (camera(1920, 1080, barrel), central(camera(1920, 1080))),
        "folded lens": (camera(640, 480, (-0.35, 0, 0, 0, 0), 300), camera(96, 96, (), 24)),
        "fisheye": (fisheye, camera(96, 96, (), 44)),
        "odd 333x251 to 64x64": (camera(333, 251, (), 300), camera(64, 64, (), 62)),
        "odd 6x5 to 7x9": (camera(6, 5, (), 6), camera(7, 9, (), 7)),
        "magnified": (camera(24, 18, (), 30), camera(192, 144, (), 240)),
        "windows of 64 pixels": (camera(1280, 720, (), 700), camera(16, 16, (), 10)),
        "windows too large": (camera(1921, 1083, (), 900), camera(7, 5, (), 5)),
    }


def kinds(src: Camera, dst: Camera, layouts: Sequence[str] = LAYOUTS, dtypes: Sequence[str] = DTYPES) -> list[Warp]:
    """A Warp for every layout that the size allows and every type."""
    even = src.width % 2 == 0 and src.height % 2 == 0
    return [
        Warp(src, dst, layout=layout, dtype=d, step=0.0173 if d == "int8" else 1.0, **NORMAL)
        for layout in layouts
        if even or layout in ("rgb", "bgr")
        for d in dtypes
    ]


def check(driver: Any) -> int:
    wrong, mixed = 0, []
    for name, pair in geometries().items():
        warps = kinds(*pair)
        mixed += warps[3::5]
        for mapped in (True, False):
            wrong += differences(f"{name}, {'mapped' if mapped else 'on the device'}", warps, driver, mapped=mapped)
    plain = kinds(*geometries()["distorted 640x480"])
    wrong += differences("the plain kernel", plain, driver, tuning=Tuning(tiles=()))
    large = [w for w in mixed if w.window[0] < 64]
    wrong += differences("all cameras mixed, some twice", [*large, *large[::-2]], driver)
    many = kinds(*geometries()["640x480"], ("bgr", "nv12"), ("float32",))
    wrong += differences("19 frames each of two kinds, alternating", many * 19, driver, mapped=False)
    for tile in ((8, 4), (8, 2), (8, 1), (32, 2), (8, 8)):
        wrong += differences(f"tile {tile}", many * 5, driver, tuning=Tuning((tile,), frames=3))
    return wrong


def small(driver: Any) -> int:
    wrong = 0
    for name in ("320x240", "fisheye", "odd 333x251 to 64x64", "odd 6x5 to 7x9", "windows too large"):
        wrong += differences(name, kinds(*geometries()[name], dtypes=("float32", "int8")) * 2, driver, mapped=False)
    return wrong


def least_bytes(warp: Warp, frames: int) -> int:
    """Sectors that a footprint touches, in every frame; table and output once."""
    kw, row = warp.window[0], warp._row
    n, k = np.nonzero(warp.weights)
    x, y = warp._table.origin[n, 0] + k % kw, warp._table.origin[n, 1] + k // kw
    layout = LAYOUTS[warp._pass.format]
    if layout == "nv12":
        at = np.concatenate([y * row + x, (warp.src.height + y // 2) * row + x])
    else:
        each = 3 if layout in ("rgb", "bgr") else 2
        at = np.concatenate([y * row + each * x, y * row + each * x + each - 1])
    sectors = len(np.unique(at // 32))
    out = int(np.prod(warp._out_shape)) * np.dtype(warp.dtype).itemsize
    return frames * (32 * sectors + out) + warp.weights.nbytes + warp._table.origin.nbytes


def copy_rate(cuda: Timed) -> float:
    """Bytes a second, read and written, of a copy of 1 GiB on the device."""
    size = 1 << 30
    source, to = cuda.room(size), cuda.room(size)
    rate = 2 * size / cuda.median_us(lambda: cuda.copy(to, source, size), rounds=15) * 1e6
    for address in (source, to):
        cuda.call("cuMemFree_v2", c_uint64(address))
    return rate


def measure(cuda: Timed, variants: bool) -> None:
    rate = copy_rate(cuda)
    print(f"{cuda.name()}, L2 {cuda.attribute(L2_BYTES) / 2**20:.0f} MiB, copy on the device {rate / 1e12:.3f} TB/s")
    print(f"{'':48}{'us':>9}{'bound us':>10}{'of bound':>10}{'TB/s':>8}")

    def row(name: str, warp: Warp, frames: int, sets: int, tuning: Tuning = Tuning()) -> None:
        """`sets` of frames take turns, so that L2 holds little of the next one's."""
        devices = [DeviceWarp([warp] * frames, driver=cuda, mapped=False, tuning=tuning) for _ in range(sets)]
        random = np.random.default_rng(0).integers(0, 256, devices[0]._buffers[0].shape, np.uint8)
        for device in devices:
            for address in device.sources:
                cuda.put(address, random)
            device.launch()
        cuda.wait()
        turns = cuda.graph([d.launch for d in devices] * max(1, 20 // sets))
        time = cuda.median_us(turns, rounds=30) / (sets * max(1, 20 // sets))
        least = least_bytes(warp, frames)
        bound = least / rate * 1e6
        print(f"{name:48}{time:9.2f}{bound:10.2f}{bound / time:10.1%}{least / time / 1e6:8.3f}", flush=True)
        for device in devices:
            for address in (*device.sources, *device.out):
                cuda.call("cuMemFree_v2", c_uint64(address))

    full, hd = camera(1920, 1080), camera(1280, 720)
    bgr = Warp(full, central(full), layout="bgr")
    for layout, dtype in (("bgr", "float32"), ("bgr", "int8"), ("yuyv", "float32"), ("nv12", "float32")):
        warp = Warp(full, central(full), layout=layout, dtype=dtype, step=0.0173)
        row(f"64 x 1920x1080 {layout} to 96x96 {dtype}", warp, 64, 2)
    row("64 x 1920x1080 bgr to 96x96 float32, plain kernel", bgr, 64, 2, Tuning(tiles=()))
    for src in (hd, full):
        row(f"1 x {src.width}x{src.height} bgr to 96x96 float32", Warp(src, central(src), layout="bgr"), 1, 40)
    if not variants:
        return
    with ThreadPoolExecutor() as pool:
        images = dict(zip(VARIANTS, pool.map(lambda v: fatbin(macros=v[0]).read_bytes(), VARIANTS.values())))
    for name, (macros, shapes) in VARIANTS.items():
        for tile, frames in shapes:
            tuning = Tuning((tile,), frames, macros.get("LANES", 4), macros.get("STAGES", 2), images[name])
            row(f"{name}, tile {tile}, {frames} frames", bgr, 64, 2, tuning)
    for tile in ((16, 4), (8, 4), (16, 2), (8, 2), (8, 1)):
        row(f"1 x 1280x720, tile {tile}", Warp(hd, central(hd), layout="bgr"), 1, 40, Tuning((tile,)))


class Checked(Pycuda):
    """pycuda's driver with what the check needs besides."""

    def get(self, address: int, array: np.ndarray) -> None:
        self._cuda.memcpy_dtoh(array, address)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--small", "--pycuda", "--variants"):
        parser.add_argument(option, action="store_true")
    args = parser.parse_args()
    if args.pycuda:
        import pycuda.autoprimaryctx  # noqa: F401

        wrong = check(Checked())
    else:
        cuda = Timed()
        wrong = small(cuda) if args.small else check(cuda)
    print("equal bit for bit" if not wrong else f"{wrong} outputs differ")
    if not wrong and not args.small and not args.pycuda:
        measure(cuda, args.variants)
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
