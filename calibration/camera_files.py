"""A calibrated lens as files of other programs: OpenCV's FileStorage and ROS's camera_info, both YAML.

Neither has a place for the camera's pose.
"""

from __future__ import annotations

import json

import cv2
import numpy as np

from calibration.camera import Camera


def opencv_yaml(camera: Camera) -> str:
    """Text that `cv2.FileStorage` reads, with the keys that OpenCV's calibration sample writes: image_width,
    image_height (px), fisheye_model (1: for `cv2.fisheye`), camera_matrix float64[3,3], distortion_coefficients
    float64[n,1].

    Source: OpenCV, samples/cpp/tutorial_code/calib3d/camera_calibration.
    """
    storage = cv2.FileStorage(".yml", cv2.FILE_STORAGE_WRITE | cv2.FILE_STORAGE_MEMORY)
    storage.write("image_width", camera.width)
    storage.write("image_height", camera.height)
    storage.write("fisheye_model", int(camera.model == "fisheye"))
    storage.write("camera_matrix", camera.K)
    storage.write("distortion_coefficients", _distortion(camera).reshape(-1, 1))
    return str(storage.releaseAndGetString())


def ros_yaml(camera: Camera) -> str:
    """Text in the form of ROS's camera_calibration_parsers. The projection matrix is [K 0] and the rectification the
    identity, as for any camera that is not one of a stereo pair.

    Source: sensor_msgs/CameraInfo and image_proc's names of the lens models.
    """
    D = _distortion(camera)
    names = {"fisheye": "equidistant", "rational": "rational_polynomial" if len(D) == 8 else "plumb_bob"}
    lines = [
        f"image_width: {camera.width}",
        f"image_height: {camera.height}",
        f"camera_name: {json.dumps(camera.name)}",
        *_ros_matrix("camera_matrix", camera.K),
        f"distortion_model: {names[camera.model]}",
        *_ros_matrix("distortion_coefficients", D[None]),
        *_ros_matrix("rectification_matrix", np.eye(3)),
        *_ros_matrix("projection_matrix", np.column_stack([camera.K, np.zeros(3)])),
    ]
    return "\n".join(lines) + "\n"


FORMATS = {"opencv": opencv_yaml, "ros": ros_yaml}


def _distortion(camera: Camera) -> np.ndarray:
    """D float64[4], [5] or [8]: the shorter forms of the rational model are filled up to plumb_bob's five numbers."""
    D = np.asarray(camera.D, float)
    return D if camera.model == "fisheye" else np.pad(D, (0, max(0, 5 - len(D))))


def _ros_matrix(key: str, matrix: np.ndarray) -> list[str]:
    rows, columns = matrix.shape
    data = ", ".join(_number(v) for v in matrix.ravel().tolist())
    return [f"{key}:", f"  rows: {rows}", f"  cols: {columns}", f"  data: [{data}]"]


def _number(value: float) -> str:
    """Every digit. YAML 1.1 takes a number such as 1e-05, without a point, for text."""
    text = repr(value)
    return text if "." in text else text.replace("e", ".0e")
