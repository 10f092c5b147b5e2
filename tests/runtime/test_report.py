"""A recorded episode as a film: also of cameras whose pictures are not alike."""

import cv2
import numpy as np
import pytest

from runtime.observe.report import ReportError, lacking, write_video


def recorded(n=3):
    return {
        "picture_front": np.full((n, 48, 64, 3), 200, np.uint8), "picture_wrist": np.full((n, 90, 100, 3), 60, np.uint8),
        "picture_ns": np.arange(n) * 40_000_000, "t_ns": np.arange(n) * 40_000_000, "expert": np.arange(n) % 3, "gate": np.zeros(n),
    }  # fmt: skip


def test_a_film_of_two_cameras_of_different_size(tmp_path):
    """Three pictures of 64x48 beside three of 100x90, which are shown as high as the others (53x48); twice as large in the film."""
    write_video(recorded(), tmp_path / "episode.mp4")
    film = cv2.VideoCapture(str(tmp_path / "episode.mp4"))
    read, picture = film.read()
    assert read and picture.shape == (96, 2 * (64 + 53), 3)
    assert abs(int(picture[80, 60].mean()) - 200) < 6 and abs(int(picture[80, 180].mean()) - 60) < 6


def test_a_recording_without_pictures_and_a_film_that_cannot_be_written_are_said_in_a_sentence(tmp_path, capfd):
    blind = {k: v for k, v in recorded().items() if not k.startswith("picture_")}
    with pytest.raises(ReportError, match=r"holds no pictures of both cameras.*record again"):
        write_video(blind, tmp_path / "episode.mp4")
    with pytest.raises(ReportError, match=r"cannot be encoded \(see above\): make room there, or name another folder"):
        write_video(recorded(80), tmp_path / "none" / "episode.mp4")  # more than a pipe holds
    assert "No such file or directory" in capfd.readouterr().err


def test_what_a_page_needs_and_a_robot_may_lack_is_named_as_pip_knows_it(monkeypatch):
    assert lacking() == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "imageio_ffmpeg" else object())
    assert lacking() == ["imageio-ffmpeg"]
