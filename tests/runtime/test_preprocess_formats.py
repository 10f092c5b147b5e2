"""Pre-processing takes YUV frames, and gives half precision and INT8."""

from typing import Any

import cv2
import numpy as np
import pytest

from runtime.preprocess import Warp
from tests.runtime.warps import CASES, GEOMETRIES, camera, picture


def as_camera(img, layout):
    """The bytes that a camera of this pixel format would give for an RGB picture (OpenCV's own conversion)."""
    if layout == "nv12":
        i420 = cv2.cvtColor(img, cv2.COLOR_RGB2YUV_I420)
        h, w = img.shape[:2]
        u, v = i420[h : h + h // 4].reshape(h // 2, w // 2), i420[h + h // 4 :].reshape(h // 2, w // 2)
        return np.concatenate([i420[:h], np.dstack([u, v]).reshape(h // 2, w)])
    return cv2.cvtColor(img, cv2.COLOR_RGB2YUV_YUY2)


@pytest.mark.parametrize("layout", ["yuyv", "nv12"])
@pytest.mark.parametrize("case", ["crop and shrink", "distorted", "moved camera"])
def test_yuv_frames_give_the_pixels_of_their_rgb_conversion(case, layout):
    src, dst = CASES[case]
    img = np.clip(picture(src.height, src.width), 20, 235)  # clipping comes before or after the mean: keep away from it
    raw = as_camera(img, layout)
    back = cv2.cvtColor(raw, cv2.COLOR_YUV2RGB_NV12 if layout == "nv12" else cv2.COLOR_YUV2RGB_YUY2)
    want = Warp(src, dst, dtype="uint8")(back).astype(int)
    got = Warp(src, dst, dtype="uint8", layout=layout)(raw).astype(int)
    error = np.abs(got - want)
    assert np.quantile(error, 0.99) <= 1 and error.mean() < 0.5
    flat = Warp(src, dst, dtype="uint8", layout=layout)(as_camera(np.full_like(img, 90), layout))
    assert set(np.unique(flat)) <= {89, 90, 91} or (flat == 0).any()


def test_yuv_frames_of_another_shape_are_refused():
    src, dst = CASES["crop and shrink"]
    with pytest.raises(ValueError, match=r"its calibration is for \(240, 320, 2\)"):
        Warp(src, dst, layout="yuyv")(picture(240, 320))
    with pytest.raises(ValueError, match="needs an even width"):
        Warp(camera(333, 251, 300), camera(64, 64, 62), layout="nv12")


def test_half_and_int8_outputs_are_the_float_ones_rounded_to_nearest_even():
    src, dst = CASES["distorted"]
    img = picture(480, 640, 3)
    normal: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    exact = Warp(src, dst, **normal)(img)
    assert np.array_equal(Warp(src, dst, dtype="float16", **normal)(img), exact.astype(np.float16))
    step = 0.0173
    eight = Warp(src, dst, dtype="int8", step=step, **normal)(img)
    off = np.abs(eight - np.clip(exact.astype(np.float64) / step, -128, 127))
    assert eight.dtype == np.int8 and off.max() <= 0.5 + 1e-3 and eight.min() == -122


def test_half_precision_is_ieee_for_tiny_and_huge_values():
    src, dst = CASES["tiny"] if "tiny" in CASES else GEOMETRIES["tiny"]
    img = picture(src.height, src.width)
    for std in (1e-6, 1e-3, 1e4, 1e7, 3e7):
        normal: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (std,) * 3}
        want = Warp(src, dst, **normal)(img)
        with np.errstate(over="ignore"):
            assert np.array_equal(Warp(src, dst, dtype="float16", **normal)(img), want.astype(np.float16))
