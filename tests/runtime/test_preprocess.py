"""The pre-processing kernel against independent references: a float64 map and OpenCV."""

import cv2
import numpy as np
import pytest

from calibration.camera import Camera
from runtime.preprocess import Warp


def picture(h, w, seed=0):
    """Smooth shading, hard edges and noise: what a table with objects looks like to a filter."""
    rng = np.random.default_rng(seed)
    img = cv2.resize(rng.integers(0, 255, (6, 8, 3)).astype(np.uint8), (w, h), interpolation=cv2.INTER_CUBIC)
    for _ in range(25):
        p, q = rng.integers(0, [w, h], (2, 2))
        cv2.rectangle(
            img, tuple(map(int, p)), tuple(map(int, (p + q // 6))), tuple(map(int, rng.integers(0, 255, 3))), -1
        )
    return np.clip(img + rng.normal(0, 4, img.shape), 0, 255).astype(np.uint8)


def camera(w, h, f, D=(), T=None):
    return Camera(
        "front", w, h, np.array([[f, 0, (w - 1) / 2], [0, f, (h - 1) / 2], [0, 0, 1.0]]), np.array(D, float), T
    )


def looking(x, z, tilt, yaw=0.0):
    """A camera at (x, 0, z) looking down at the table by `tilt` below the horizon."""
    forward = np.array([-np.cos(tilt), np.sin(yaw) * np.cos(tilt), -np.sin(tilt)])
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    T = np.eye(4)
    T[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    T[:3, 3] = [x, 0, z]
    return T


def reference(img, src, dst, n=16):
    """Each output pixel is the mean of n x n bilinear samples; points are carried over the table plane one by one."""
    out = np.zeros((dst.height, dst.width, 3))
    v, u = np.mgrid[: dst.height, : dst.width].astype(float)
    for j in range(n):
        for i in range(n):
            p = np.stack([u + (i + 0.5) / n - 0.5, v + (j + 0.5) / n - 0.5], -1)
            if dst.T_base_from_cam is not None and src.T_base_from_cam is not None:
                world = dst.at_height(p, 0.0)
                R, t = src.T_base_from_cam[:3, :3], src.T_base_from_cam[:3, 3]
                cam = (world - t) @ R
            else:
                cam = np.concatenate([(p - dst.K[:2, 2]) / [dst.K[0, 0], dst.K[1, 1]], np.ones_like(p[..., :1])], -1)
            D = src.D if len(src.D) else np.zeros(4)
            xy = cv2.projectPoints(cam.reshape(-1, 1, 3), np.zeros(3), np.zeros(3), src.K, D)[0].reshape(p.shape)
            x, y = xy[..., 0], xy[..., 1]
            x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
            fx, fy = (x - x0)[..., None], (y - y0)[..., None]
            grab = lambda yy, xx: img[np.clip(yy, 0, src.height - 1), np.clip(xx, 0, src.width - 1)].astype(float)  # noqa: E731
            out += (1 - fx) * (1 - fy) * grab(y0, x0) + fx * (1 - fy) * grab(y0, x0 + 1)
            out += (1 - fx) * fy * grab(y0 + 1, x0) + fx * fy * grab(y0 + 1, x0 + 1)
    return out / n**2


CASES = {
    "crop and shrink": (camera(320, 240, 330), camera(96, 96, 132)),
    "distorted": (camera(640, 480, 500, (-0.28, 0.08, 0.001, -0.0005, 0.01)), camera(96, 96, 95)),
    "rational": (camera(640, 480, 420, (0.1, 0.02, 0.0003, 0.0002, 0.001, 0.3, 0.05, 0.002)), camera(96, 96, 80)),
    "moved camera": (
        camera(640, 480, 560, (-0.1, 0.02, 0, 0, 0), looking(0.53, 0.40, 0.85, 0.05)), camera(96, 96, 110, (), looking(0.5, 0.36, 0.83)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_supersampled_float64_map(case):
    src, dst = CASES[case]
    img = picture(src.height, src.width)
    got = Warp(src, dst, mean=(0, 0, 0), std=(1, 1, 1))(img).transpose(1, 2, 0) * 255
    warp = Warp(src, dst, mean=(0, 0, 0), std=(1, 1, 1))
    inside = (warp.weights.astype(int).sum(1) == 32768).reshape(dst.height, dst.width)
    assert inside.mean() > 0.9
    error = np.abs(got - reference(img, src, dst))[inside]
    assert np.quantile(error, 0.999) <= 0.5


def test_pure_shrink_agrees_with_opencv_area():
    src = camera(320, 240, 330)
    img = picture(240, 320)
    got = Warp(src, camera(96, 96, 132), mean=(0, 0, 0), std=(1, 1, 1))(img).transpose(1, 2, 0) * 255
    area = cv2.resize(img[:, 40:280].astype(np.float32), (96, 96), interpolation=cv2.INTER_AREA)
    # Area averaging treats pixels as squares, ours interpolates between centres: they differ by the noise between neighbours.
    assert np.quantile(np.abs(got - area), 0.5) <= 1.0


def test_flat_picture_stays_flat():
    src, dst = CASES["distorted"]
    out = Warp(src, dst, dtype="uint8")(np.full((480, 640, 3), 137, np.uint8))
    assert np.unique(out).tolist() == [137]


def test_uint8_is_the_float_path_rounded_and_bgr_is_rgb_swapped():
    src, dst = CASES["distorted"]
    img = picture(480, 640, 3)
    raw = Warp(src, dst, mean=(0, 0, 0), std=(1, 1, 1))(img)
    u8 = Warp(src, dst, dtype="uint8")(img)
    assert np.abs(raw * 255 - u8).max() <= 0.5 + 1e-3
    assert np.array_equal(Warp(src, dst, dtype="uint8", layout="bgr")(img[..., ::-1]), u8)


def test_normalisation_and_repeatability():
    src, dst = CASES["crop and shrink"]
    img = picture(240, 320)
    plain = Warp(src, dst, mean=(0, 0, 0), std=(1, 1, 1))(img)
    warp = Warp(src, dst, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    want = (plain - np.array([0.4, 0.5, 0.6])[:, None, None]) / np.array([0.2, 0.3, 0.4])[:, None, None]
    assert np.allclose(warp(img), want, atol=2e-6)
    out = np.empty((3, 96, 96), np.float32)
    assert warp(img, out=out) is out
    assert np.array_equal(out, warp(img))


def test_a_frame_of_another_size_is_refused():
    src, dst = CASES["crop and shrink"]
    with pytest.raises(ValueError, match="calibrate it again"):
        Warp(src, dst)(np.zeros((480, 640, 3), np.uint8))
