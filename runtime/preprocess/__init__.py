"""Pre-processing: one fused pass per camera from the sensor's picture to the network's input.

Undistorts with the stored calibration, re-projects to the training camera (by the table plane where both poses are known and
differ), shrinks by area, orders the channels, normalises and writes NCHW. The kernel (`warp.cuh`) is shared with CUDA.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import numpy as np

from calibration.camera import Camera
from runtime.preprocess.build import KernelError, library

__all__ = ["KernelError", "Warp"]


class _Geometry(ctypes.Structure):
    _fields_ = [
        ("H", ctypes.c_double * 9),
        *((n, ctypes.c_double) for n in ("fx", "fy", "cx", "cy")),
        ("D", ctypes.c_double * 8),
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
    return (T_src_from_dst[:3, :3] + np.outer(T_src_from_dst[:3, 3], normal) / distance) @ inverse


@functools.lru_cache(maxsize=8)
def _table(
    H: tuple[float, ...], camera: tuple[float, ...], D: tuple[float, ...], sizes: tuple[int, int, int, int]
) -> tuple[tuple[int, int], np.ndarray, np.ndarray, float]:
    """Footprint table: window, origin int32[n,2], weights uint16[n,kh*kw], coverage. Slow and fast loop share it."""
    g = _Geometry((ctypes.c_double * 9)(*H), *camera, (ctypes.c_double * 8)(*D))
    n = sizes[2] * sizes[3]
    for full in (0, 1):
        kw, kh = ctypes.c_int(), ctypes.c_int()
        _kernel().warp_window(ctypes.byref(g), *sizes, full, ctypes.byref(kw), ctypes.byref(kh))
        origin, weights = np.empty((n, 2), np.int32), np.empty((n, kh.value * kw.value), np.uint16)
        coverage = float(_kernel().warp_table(ctypes.byref(g), *sizes, kw, kh, _pointer(origin), _pointer(weights)))
        if coverage >= 0:
            break
    return (kw.value, kh.value), origin, weights, coverage


class Warp:
    """The fixed map from camera `src` to training camera `dst`.

    `dtype` "float32": (value / 255 - mean) / std; "uint8": the same pixels, rounded, not normalised (for datasets).
    `coverage` is the share of the output that the source sees; the rest is black.
    """

    def __init__(
        self, src: Camera, dst: Camera, *, mean: Sequence[float] = (0.5, 0.5, 0.5), std: Sequence[float] = (0.5, 0.5, 0.5),
        layout: str = "rgb", dtype: str = "float32", plane_z: float = 0.0,
    ):  # fmt: skip
        if layout not in ("rgb", "bgr") or dtype not in ("float32", "uint8"):
            raise ValueError(f"layout is rgb or bgr and dtype float32 or uint8, not {layout} and {dtype}")
        if len(src.D) not in (0, 4, 5, 8):
            raise ValueError(
                f"camera '{src.name}' has {len(src.D)} distortion coefficients; 0, 4, 5 or 8 are understood"
            )
        self.src, self.dst, self.bgr, self.dtype = src, dst, int(layout == "bgr"), dtype
        D = np.zeros(8)
        D[: len(src.D)] = src.D
        camera = (src.K[0, 0], src.K[1, 1], src.K[0, 2], src.K[1, 2])
        self.n = dst.width * dst.height
        self.window, self.origin, self.weights, self.coverage = _table(
            tuple(plane_homography(src, dst, plane_z).ravel()),
            camera,
            tuple(D),
            (src.width, src.height, dst.width, dst.height),
        )
        m, s = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        self.scale = (1.0 / (255.0 * 32768.0 * s)).astype(np.float32)
        self.bias = (-m / s).astype(np.float32)

    def __call__(self, frame: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """uint8[H,W,3] to `dtype`[3,h,w]; raises ValueError for a frame of another size or type."""
        want = (self.src.height, self.src.width, 3)
        if frame.shape != want or frame.dtype != np.uint8:
            raise ValueError(
                f"camera '{self.src.name}' gave a frame {frame.shape} of {frame.dtype}, its calibration is for {want} of uint8: "
                "set the camera to that resolution or calibrate it again."
            )
        if frame.strides[1:] != (3, 1):
            frame = np.ascontiguousarray(frame)
        shape = (3, self.dst.height, self.dst.width)
        if out is None:
            out = np.empty(shape, self.dtype)
        elif out.shape != shape or out.dtype != self.dtype or not out.flags.c_contiguous:
            raise ValueError(f"out must be a contiguous {self.dtype}{list(shape)}")
        head = (
            _pointer(frame),
            frame.strides[0],
            self.n,
            *self.window,
            _pointer(self.origin),
            _pointer(self.weights),
            self.bgr,
        )
        if self.dtype == "float32":
            _kernel().warp_float(*head, _pointer(self.scale), _pointer(self.bias), _pointer(out))
        else:
            _kernel().warp_uint8(*head, _pointer(out))
        return out
