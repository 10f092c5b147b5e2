"""`harmowam calibrate export`: other programs read the file and project points where this one does."""

import re
from typing import Any

import cv2
import numpy as np
import pytest

from calibration import lens
from calibration.camera import Camera
from calibration.camera_files import ros_yaml
from calibration.records import theta_of
from calibration.store import Store, new_record
from tests.calibration.verbs import calibrate

K = np.array([[920.123456789, 0, 655.1], [0, 915, 348.2], [0, 0, 1]])
FIVE = [-0.32, 0.12, 0.0008, -1e-5, -0.02]
LENSES = {  # by ROS's name: model and distortion
    "plumb_bob": ("rational", FIVE),
    "rational_polynomial": ("rational", [*FIVE, 0.011, 0.022, -0.003]),
    "equidistant": ("fisheye", [0.03, -0.01, 0.004, -0.0007]),
}
POINTS = np.random.default_rng(0).uniform([-0.4, -0.3, 0.8], [0.4, 0.3, 1.2], (50, 3))
ZERO = np.zeros(3)


def put(store, result):
    """Put the camera `result` to use as "front"."""
    where = Store(store)
    record = new_record("camera", "front", result, identity={}, parents=[], uncertainty={}, evidence={})
    where.set_current("front", where.put(record), "test")


def stored(tmp_path, name):
    """The lens `name` in a store under tmp_path, and the function that exports it."""
    model, D = LENSES[name]
    camera = Camera("front", 1280, 720, K, np.array(D), None, model)
    put(tmp_path, camera.to_json())

    def export(form):
        done = calibrate("export", "front", "--format", form, "--out", tmp_path / "x.yaml", "--store", tmp_path)
        assert done.exit_code == 0, done.output
        return tmp_path / "x.yaml"

    return camera, export


def farthest(camera, K, D, fisheye):
    """Largest distance (px) between OpenCV's projection with these numbers and this program's."""
    project = cv2.fisheye.projectPoints if fisheye else cv2.projectPoints
    theirs = project(POINTS[:, None], ZERO, ZERO, K, D)[0].reshape(-1, 2)
    return np.abs(theirs - lens.project(POINTS, *theta_of(camera))[0]).max()


@pytest.mark.parametrize("name", LENSES)
def test_opencv_reads_its_form_and_projects_to_the_same_pixels(name, tmp_path):
    camera, export = stored(tmp_path, name)
    read = cv2.FileStorage(str(export("opencv")), cv2.FILE_STORAGE_READ)
    assert (read.getNode("image_width").real(), read.getNode("image_height").real()) == (1280, 720)
    fisheye = read.getNode("fisheye_model").real() == 1
    assert fisheye == (name == "equidistant")
    K, D = read.getNode("camera_matrix").mat(), read.getNode("distortion_coefficients").mat()
    assert farthest(camera, K, D, fisheye) < 1e-6


def read_ros(text):
    """Numbers, texts and float64[rows,cols] of ROS's form, by OpenCV's parser, which wants a head that ROS's lacks."""
    read = cv2.FileStorage("%YAML:1.0\n---\n" + text, cv2.FILE_STORAGE_READ | cv2.FILE_STORAGE_MEMORY)
    out: dict[str, Any] = {}
    keys = read.root().keys()
    for key in keys:
        node = read.getNode(key)
        if node.isMap():
            data = node.getNode("data")
            shape = int(node.getNode("rows").real()), int(node.getNode("cols").real())
            out[key] = np.array([data.at(k).real() for k in range(data.size())]).reshape(shape)
        else:
            out[key] = node.string() if node.isString() else node.real()
    return out


@pytest.mark.parametrize("name", LENSES)
def test_the_form_of_ros_names_the_lens_and_projects_to_the_same_pixels(name, tmp_path):
    camera, export = stored(tmp_path, name)
    read = read_ros(export("ros").read_text())
    assert (read["image_width"], read["image_height"], read["camera_name"]) == (1280, 720, "front")
    assert read["distortion_model"] == name
    assert (read["rectification_matrix"] == np.eye(3)).all()
    assert (read["projection_matrix"] == np.column_stack([camera.K, ZERO])).all()
    D = read["distortion_coefficients"]
    assert D.shape == (1, len(LENSES[name][1]))
    assert farthest(camera, read["camera_matrix"], D.ravel(), name == "equidistant") < 1e-6


@pytest.mark.parametrize("D", [[], FIVE[:4]])
def test_the_short_forms_of_distortion_are_plumb_bob_with_its_five_numbers(D):
    read = read_ros(ros_yaml(Camera("front", 1280, 720, K, np.array(D))))
    assert read["distortion_model"] == "plumb_bob"
    assert read["distortion_coefficients"].tolist() == [[*D, *[0.0] * (5 - len(D))]]


def test_a_small_number_has_a_point_and_a_name_quotes_so_that_every_reader_of_yaml_takes_them_for_what_they_are():
    text = ros_yaml(Camera("null", 1280, 720, K, np.array(FIVE)))
    data = re.search(r"distortion_coefficients:.*?data: \[(.*?)\]", text, re.DOTALL)
    assert data[1].split(", ") == ["-0.32", "0.12", "0.0008", "-1.0e-05", "-0.02"]
    assert 'camera_name: "null"' in text


def test_what_is_no_known_lens_and_what_cannot_be_written_is_refused_in_one_sentence(tmp_path):
    camera, _ = stored(tmp_path, "plumb_bob")
    (tmp_path / "file").write_text("")
    args = ("export", "front", "--format", "ros", "--store", tmp_path, "--out")
    done = calibrate(*args, tmp_path / "file" / "x.yaml")
    assert done.exit_code == 2 and "cannot be written" in done.stderr
    put(tmp_path, {**camera.to_json(), "model": "panoramic"})
    done = calibrate(*args, tmp_path / "x.yaml")
    assert done.exit_code == 2 and "an unknown lens model ('panoramic')" in done.stderr
    assert not (tmp_path / "x.yaml").exists()
