"""A recorded episode as a film: also of cameras whose pictures are not alike."""

import cv2
import numpy as np

from runtime.report import lacking, write_video


def test_a_film_of_two_cameras_of_different_size(tmp_path):
    """Three pictures of 64x48 beside three of 100x90, which are shown as high as the others (53x48); twice as large in the film."""
    episode = {
        "picture_front": np.full((3, 48, 64, 3), 200, np.uint8), "picture_wrist": np.full((3, 90, 100, 3), 60, np.uint8),
        "picture_ns": np.arange(3) * 40_000_000, "t_ns": np.arange(3) * 40_000_000, "expert": np.array([0, 1, 2]), "gate": np.zeros(3),
    }  # fmt: skip
    write_video(episode, tmp_path / "episode.mp4")
    film = cv2.VideoCapture(str(tmp_path / "episode.mp4"))
    read, picture = film.read()
    assert read and picture.shape == (96, 2 * (64 + 53), 3)
    assert abs(int(picture[80, 60].mean()) - 200) < 6 and abs(int(picture[80, 180].mean()) - 60) < 6


def test_what_a_page_needs_and_a_robot_may_lack_is_named_as_pip_knows_it(monkeypatch):
    assert lacking() == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "imageio_ffmpeg" else object())
    assert lacking() == ["imageio-ffmpeg"]
