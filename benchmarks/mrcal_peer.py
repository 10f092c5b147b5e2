"""mrcal (Debian `python3-mrcal`) on a file of corners: `/usr/bin/python3 benchmarks/mrcal_peer.py IN.npz OUT.npy`.

`benchmarks.calibration_peers` runs it with the system's Python: mrcal is not on the package index.
IN: corners float64[views,rows,columns,3] (x, y, weight; weight -1 where not seen), spacing (m), size (width, height).
OUT: theta float64[12] (fx fy cx cy, then OpenCV's eight).
"""

import sys

import mrcal
import numpy as np


def solve(corners, spacing, size):
    views, rows, columns, _ = corners.shape
    indices = np.stack([np.arange(views), np.zeros(views), -np.ones(views)], 1).astype(np.int32)
    focal = 0.8 * size[0]
    core = np.array([focal, focal, (size[0] - 1) / 2, (size[1] - 1) / 2])
    poses = mrcal.estimate_monocular_calobject_poses_Rt_tocam(
        indices[:, :2], corners, spacing, [mrcal.cameramodel(intrinsics=("LENSMODEL_PINHOLE", core), imagersize=size)]
    )
    problem = {
        "intrinsics": np.concatenate([core, np.zeros(8)])[None],
        "extrinsics_rt_fromref": np.zeros((0, 6)),
        "frames_rt_toref": mrcal.rt_from_Rt(poses),
        "points": None,
        "observations_board": corners,
        "indices_frame_camintrinsics_camextrinsics": indices,
        "observations_point": None,
        "indices_point_camintrinsics_camextrinsics": None,
        "lensmodel": "LENSMODEL_OPENCV8",
        "imagersizes": np.array([size], np.int32),
        "calibration_object_spacing": spacing,
        "calobject_warp": np.zeros(2),
        "do_optimize_frames": True,
        "do_optimize_extrinsics": True,
        "do_apply_regularization": True,
        "do_apply_outlier_rejection": False,
        "verbose": False,
    }
    for free in (
        {
            "do_optimize_intrinsics_core": True,
            "do_optimize_intrinsics_distortions": False,
            "do_optimize_calobject_warp": False,
        },
        {
            "do_optimize_intrinsics_core": True,
            "do_optimize_intrinsics_distortions": True,
            "do_optimize_calobject_warp": False,
        },
        {
            "do_optimize_intrinsics_core": True,
            "do_optimize_intrinsics_distortions": True,
            "do_apply_outlier_rejection": True,
        },
    ):
        problem.update(free)
        mrcal.optimize(**problem)
    return mrcal.cameramodel(optimization_inputs=problem, icam_intrinsics=0)


def main():
    data = np.load(sys.argv[1])
    model = solve(np.ascontiguousarray(data["corners"]), float(data["spacing"]), tuple(int(v) for v in data["size"]))
    np.save(sys.argv[2], model.intrinsics()[1])


if __name__ == "__main__":
    main()
