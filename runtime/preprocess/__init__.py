"""Pre-processing: one fused pass per camera from the sensor's picture to the network's input.

Undistorts with the stored calibration, re-projects to the training camera (by the table plane where both poses are
known and differ), shrinks by area, orders the channels, normalises and writes NCHW. The kernel (`warp.cuh`) is shared
with CUDA.

The filter: an output pixel is the mean of 16 x 16 bilinear samples spread over its square and carried through the map,
so its footprint follows the map's local stretch. Against OpenCV's INTER_AREA (source pixels as squares) this is wider
by a tent: equal within 1/255 at p99 from about 7 times shrinking on, up to 3/255 at p99 around hard edges at 2.5 times
(the tests have both).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from calibration.camera import Camera
from runtime.preprocess.build import KernelError, library

__all__ = ["KernelError", "Warp", "warp_all"]

LAYOUTS = ("rgb", "bgr", "yuyv", "nv12")  # in the order of warp.cuh's enums
DTYPES = ("float32", "uint8", "float16", "int8")
WEIGHT_BITS = 15  # kWeightBits of warp.cuh


class _Geometry(ctypes.Structure):
    _fields_ = [
        ("H", ctypes.c_double * 9),
        *((n, ctypes.c_double) for n in ("fx", "fy", "cx", "cy")),
        ("D", ctypes.c_double * 8),
        ("r2_max", ctypes.c_double),
        ("fisheye", ctypes.c_int32),
    ]


class _Pass(ctypes.Structure):
    """Mirrors `Pass` in warp.cuh."""

    _fields_ = [
        *((n, ctypes.c_int32) for n in ("src_w", "src_h", "n", "kw", "kh", "format", "type")),
        *((n, ctypes.c_void_p) for n in ("origin", "weights", "packed")),
        ("scale", ctypes.c_float * 3),
        ("bias", ctypes.c_float * 3),
    ]


@functools.cache
def _kernel() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(library()))
    lib.warp_table.restype = ctypes.c_double
    return lib


def _pointer(a: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(a.ctypes.data)


def plane_homography(src: Camera, dst: Camera, plane_z: float) -> np.ndarray:
    """float64[3,3]: output pixel (u, v, 1) of `dst` to a ray of `src`, exact for points on the plane z = `plane_z`.

    Without two poses, or with equal ones, only the intrinsics differ and the map is exact at every depth.
    """
    inverse = np.linalg.inv(dst.K)
    if (
        src.T_base_from_cam is None
        or dst.T_base_from_cam is None
        or np.allclose(src.T_base_from_cam, dst.T_base_from_cam, atol=1e-9)
    ):
        return inverse
    T_src_from_dst = np.linalg.inv(src.T_base_from_cam) @ dst.T_base_from_cam
    normal = dst.T_base_from_cam[2, :3]  # the plane's normal (base z) in the dst camera frame
    distance = plane_z - dst.T_base_from_cam[2, 3]
    if abs(distance) < 1e-6 or abs(plane_z - src.T_base_from_cam[2, 3]) < 1e-6:
        raise ValueError(
            f"plane z = {plane_z} m passes through camera '{src.name}' or '{dst.name}': give another plane_z"
        )
    return (T_src_from_dst[:3, :3] + np.outer(T_src_from_dst[:3, 3], normal) / distance) @ inverse


def fold_radius(D: Sequence[float], fisheye: bool = False) -> float:
    """Up to which undistorted radius (in focal lengths) the distorted one grows; 1e6 when it always does.

    Beyond, a barrel polynomial decreases again and would show parts of the picture a second time, mirrored. `D` as in
    OpenCV's rational model, eight coefficients, or the first four of them as in its fisheye model.
    """
    if not np.any(D):
        return 1e6
    if fisheye:
        t = np.linspace(0.0, np.pi / 2 - 1e-6, 16001)
        bent = t * (1 + t**2 * (D[0] + t**2 * (D[1] + t**2 * (D[2] + t**2 * D[3]))))
        falling = np.flatnonzero(np.diff(bent) <= 0)
        return float(np.tan(t[falling[0]])) if len(falling) else 1e6
    r = np.linspace(0.0, 4.0, 16001)
    r2 = r * r
    radial = (1 + D[0] * r2 + D[1] * r2**2 + D[4] * r2**3) / (1 + D[5] * r2 + D[6] * r2**2 + D[7] * r2**3)
    falling = np.flatnonzero(np.diff(r * radial) <= 0)
    return float(r[falling[0]]) if len(falling) else 1e6


@dataclass(frozen=True)
class _Table:
    """Footprints of all output pixels: window (columns, rows), its origin int32[n,2] and its weights
    uint16[n,rows*columns].

    `packed` holds the same weights spread out for the vector pass (None where it cannot be used), `coverage` the share
    of the output that the source sees.
    """

    window: tuple[int, int]
    origin: np.ndarray
    weights: np.ndarray
    packed: np.ndarray | None
    coverage: float


@functools.lru_cache(maxsize=8)
def _table(
    H: tuple[float, ...],
    camera: tuple[float, ...],
    D: tuple[float, ...],
    sizes: tuple[int, int, int, int],
    fisheye: bool,
) -> _Table:
    """Slow and fast loop share it."""
    g = _Geometry((ctypes.c_double * 9)(*H), *camera, (ctypes.c_double * 8)(*D), fold_radius(D, fisheye) ** 2, fisheye)
    n = sizes[2] * sizes[3]
    for full in (0, 1):
        w, h = ctypes.c_int(), ctypes.c_int()
        _kernel().warp_window(ctypes.byref(g), *sizes, full, ctypes.byref(w), ctypes.byref(h))
        kw, kh = w.value, h.value
        origin, weights = np.empty((n, 2), np.int32), np.empty((n, kh * kw), np.uint16)
        coverage = float(_kernel().warp_table(ctypes.byref(g), *sizes, kw, kh, _pointer(origin), _pointer(weights)))
        if coverage >= 0:
            break
    packed: np.ndarray | None = None
    if sizes[0] >= 8:  # the vector pass may read up to five pixels past a row's end, into the next one
        packed = np.empty((n, (kh + 1) // 2, (kw + 3) // 4, 24), np.int16)
        if not _kernel().warp_pack(n, kw, kh, _pointer(weights), _pointer(packed)):
            packed = None
    return _Table((kw, kh), origin, weights, packed, coverage)


@functools.lru_cache(maxsize=8)
def _straight(width: int, height: int) -> _Table:
    """Every output pixel is the source pixel at its place."""
    v, u = np.divmod(np.arange(width * height, dtype=np.int32), np.int32(width))
    origin = np.ascontiguousarray(np.stack([u, v], 1))
    return _Table((1, 1), origin, np.full((width * height, 1), 1 << WEIGHT_BITS, np.uint16), None, 1.0)


def _check_formats(src: Camera, layout: str, dtype: str, step: float) -> None:
    """Raises ValueError for a frame layout or an output type that the kernel does not know."""
    if layout not in LAYOUTS or dtype not in DTYPES:
        raise ValueError(
            f"layout is one of {', '.join(LAYOUTS)} and dtype one of {', '.join(DTYPES)}, not {layout} and {dtype}"
        )
    if layout in ("yuyv", "nv12") and (src.width % 2 or src.height % 2):
        raise ValueError(f"{layout} needs an even width and height, not {src.width}x{src.height}")
    if not 0 < step < float("inf"):
        raise ValueError(f"step is a positive number, not {step}")


def _check_cameras(src: Camera, dst: Camera) -> None:
    """Raises ValueError for lens models that the kernel does not know."""
    if src.model == "fisheye" and len(src.D) != 4:
        raise ValueError(
            f"camera '{src.name}' is a fisheye with {len(src.D)} distortion coefficients; 4 are understood"
        )
    if len(src.D) not in (0, 4, 5, 8):
        raise ValueError(f"camera '{src.name}' has {len(src.D)} distortion coefficients; 0, 4, 5 or 8 are understood")
    if len(dst.D) and np.any(dst.D):
        raise ValueError(f"training camera '{dst.name}' has lens distortion: its geometry must be a pinhole's")


def _normalisation(mean: Sequence[float], std: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64[3]; raises ValueError for what is no mean or standard deviation of three colours."""
    m, s = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if m.shape != (3,) or s.shape != (3,) or not (np.isfinite(m).all() and np.isfinite(s).all() and (s > 0).all()):
        raise ValueError(f"mean and std are three finite numbers each and std is positive, not {mean} and {std}")
    return m, s


def _mapped(src: Camera, dst: Camera, plane_z: float) -> _Table:
    """Raises ValueError for lenses that the kernel does not know, and for a plane that passes through a camera."""
    _check_cameras(src, dst)
    D = np.zeros(8)
    D[: len(src.D)] = src.D
    return _table(
        tuple(plane_homography(src, dst, plane_z).ravel()),
        (src.K[0, 0], src.K[1, 1], src.K[0, 2], src.K[1, 2]),
        tuple(D),
        (src.width, src.height, dst.width, dst.height),
        src.model == "fisheye",
    )


def _equal(src: Camera, dst: Camera) -> _Table:
    """Raises ValueError where the sizes differ."""
    if (src.width, src.height) != (dst.width, dst.height):
        raise ValueError(
            f"camera '{src.name}' gives pictures of {src.width}x{src.height}, and the policy takes them as they are at "
            f"{dst.width}x{dst.height}: set the camera to that resolution"
        )
    return _straight(dst.width, dst.height)


class Warp:
    """The fixed map from camera `src` to training camera `dst`.

    `dtype` "float32" or "float16": (value / 255 - mean) / std; "int8": that in steps of `step` (the engine's
    quantisation scale), nearest, clipped; "uint8": the same pixels, rounded, not normalised (for datasets). `layout` of
    a frame: "rgb" and "bgr" uint8[H,W,3], "yuyv" uint8[H,W,2], "nv12" uint8[H*3/2,W] (BT.601, studio range); the last
    two need even sizes. `coverage` is the share of the output that the source sees; the rest is black. Instances may be
    shared between threads. With `straight` the output is the frame itself, pixel for pixel: lens and pose of `src` and
    `dst` are not looked at, and both have one size.
    """

    def __init__(
        self,
        src: Camera,
        dst: Camera,
        *,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        layout: str = "rgb",
        dtype: str = "float32",
        plane_z: float = 0.0,
        step: float = 1.0,
        straight: bool = False,
    ):
        _check_formats(src, layout, dtype, step)
        m, s = _normalisation(mean, std)
        self.src, self.dst, self.dtype = src, dst, dtype
        table = _equal(src, dst) if straight else _mapped(src, dst, plane_z)
        self.window, self.weights, self.coverage = table.window, table.weights, table.coverage
        self._table = table  # keeps the arrays alive that the kernel points to
        self._pass = _Pass(
            src.width,
            src.height,
            dst.width * dst.height,
            *table.window,
            LAYOUTS.index(layout),
            DTYPES.index(dtype),
            table.origin.ctypes.data,
            table.weights.ctypes.data,
            None if table.packed is None else table.packed.ctypes.data,
            tuple((1.0 / (255.0 * 32768.0 * s * step)).astype(np.float32)),
            tuple((-m / (s * step)).astype(np.float32)),
        )
        self._call = functools.partial(_kernel().warp_run, ctypes.byref(self._pass))
        self._frame_shape: tuple[int, ...] = {
            "yuyv": (src.height, src.width, 2),
            "nv12": (src.height * 3 // 2, src.width),
        }.get(layout, (src.height, src.width, 3))
        self._out_shape = (3, dst.height, dst.width)
        # Strides of a frame whose pixels lie side by side; its rows may be further apart.
        self._inner = tuple(np.empty(self._frame_shape, np.uint8).strides[1:])
        self._row = int(np.prod(self._frame_shape[1:]))

    def __call__(self, frame: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """A frame of the layout to `dtype`[3,h,w]; raises ValueError for a frame of another size or type."""
        frame, out = self._checked(frame, out)
        self._call(_pointer(frame), frame.strides[0], _pointer(out))
        return out

    def check(self, frame: np.ndarray) -> None:
        """Raises ValueError for a frame of another size or type than the camera's."""
        if frame.shape != self._frame_shape or frame.dtype != np.uint8:
            raise ValueError(
                f"camera '{self.src.name}' gave a frame {frame.shape} of {frame.dtype}, its calibration is for "
                f"{self._frame_shape} of uint8: set the camera to that resolution or calibrate it again."
            )

    def _checked(self, frame: np.ndarray, out: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        self.check(frame)
        if frame.strides[1:] != self._inner or frame.strides[0] < self._row:
            frame = np.ascontiguousarray(frame)
        if out is None:
            out = np.empty(self._out_shape, self.dtype)
        elif out.shape != self._out_shape or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(f"out must be a contiguous {self.dtype}{list(self._out_shape)}")
        return frame, out


def warp_all(
    warps: Sequence[Warp], frames: Sequence[np.ndarray], outs: Sequence[np.ndarray | None] | None = None
) -> list[np.ndarray]:
    """Several cameras in one call of the kernel; every frame is checked before any output is written."""
    pairs = [w._checked(f, o) for w, f, o in zip(warps, frames, outs or [None] * len(warps), strict=True)]
    n = len(warps)
    _kernel().warp_run_all(
        n,
        (ctypes.c_void_p * n)(*(ctypes.addressof(w._pass) for w in warps)),
        (ctypes.c_void_p * n)(*(f.ctypes.data for f, _ in pairs)),
        (ctypes.c_int * n)(*(f.strides[0] for f, _ in pairs)),
        (ctypes.c_void_p * n)(*(o.ctypes.data for _, o in pairs)),
    )
    return [o for _, o in pairs]
