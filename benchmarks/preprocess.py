"""Pre-processing against the OpenCV chain, side by side in one run: `python -m benchmarks.preprocess`.

OpenCV: remap (undistort, full size) + resize by area + cvtColor + normalise and transpose in NumPy. One thread each.
"""

from __future__ import annotations

import argparse
import time

import cv2
import numpy as np

from calibration.camera import Camera
from runtime.preprocess import Warp


def camera(width: int, height: int, focal: float, D: tuple[float, ...] = ()) -> Camera:
    K = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
    return Camera("front", width, height, K, np.array(D))


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    cv2.setNumThreads(1)
    print(f"{'case':34}{'ours p50':>10}{'p99':>8}{'OpenCV p50':>12}{'p99':>8}{'ratio':>8}")
    for name, src in (
        ("320x240 -> 96x96, no distortion", camera(320, 240, 330)),
        ("640x480 -> 96x96, distorted", camera(640, 480, 660, (-0.1, 0.02, 0.0, 0.0, 0.0))),
        ("1280x720 -> 96x96, distorted", camera(1280, 720, 990, (-0.1, 0.02, 0.0, 0.0, 0.0))),
    ):
        dst = camera(96, 96, src.K[0, 0] * 96 / src.height)
        frame = np.random.default_rng(0).integers(0, 255, (src.height, src.width, 3)).astype(np.uint8)
        warp, out = Warp(src, dst, layout="bgr"), np.empty((3, 96, 96), np.float32)
        D = src.D if len(src.D) else np.zeros(5)
        map1, map2 = cv2.initUndistortRectifyMap(src.K, D, np.eye(3), src.K, (src.width, src.height), cv2.CV_16SC2)
        x = (src.width - src.height) // 2

        def opencv(
            frame: np.ndarray = frame, src: Camera = src, map1: np.ndarray = map1, map2: np.ndarray = map2, x: int = x
        ) -> np.ndarray:
            flat = cv2.remap(frame, map1, map2, cv2.INTER_LINEAR) if len(src.D) else frame
            small = cv2.resize(flat[:, x : x + src.height], (96, 96), interpolation=cv2.INTER_AREA)
            rgb = cv2.cvtColor(small, cv2.COLOR_BGR2RGB)
            return np.ascontiguousarray(((rgb.astype(np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1))

        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(300):
            for k, run in enumerate((lambda: warp(frame, out=out), opencv)):  # noqa: B023  (called at once)
                t = time.perf_counter()
                run()
                times[k].append((time.perf_counter() - t) * 1e3)
        a, b = (np.array(t[20:]) for t in times)
        ratio = np.median(b) / np.median(a)
        ours, theirs = (f"{np.median(x):10.3f}{np.percentile(x, 99):8.3f}" for x in (a, b))
        print(f"{name:34}{ours}  {theirs}{ratio:8.2f}")


if __name__ == "__main__":
    main()
