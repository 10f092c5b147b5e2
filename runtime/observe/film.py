"""A recorded run as a film: its cameras side by side, with the instruction, who drives, and how it came out."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from common.errors import Mendable
from firmware_bridge.motion.messages import Expert
from runtime.observe.episode import Episode
from runtime.observe.timeline import began_ns
from runtime.observe.verdict import verdict

SCALE = 2  # of the film
BAR = 30  # px, height of a line of text above the pictures
LAST_S = 1.5  # the last picture stays so long, under the verdict
GREEN, RED, GREY, DARK = (28, 138, 75), (189, 44, 44), (90, 90, 90), (29, 39, 51)
DRIVES = {Expert.REACTIVE: (42, 120, 181), Expert.PREDICTIVE: (217, 99, 43)}

Overview = Callable[[int], np.ndarray | None]  # capture time, ns -> uint8[H,W,3] RGB of the whole scene, if known


class ReportError(Mendable):
    """A recording that no page or film can be made of; one sentence and the next step."""


def _beside(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures uint8[H, W, 3] side by side, `SCALE` times as high as the first."""
    height, shown = SCALE * pictures[0].shape[0], []
    for rgb in pictures:
        width = SCALE * round(rgb.shape[1] * pictures[0].shape[0] / rgb.shape[0])
        shown.append(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR))
    return np.hstack(shown)


def outcome(report: Mapping[str, Any], seconds: float, last: bool) -> tuple[str, tuple[int, int, int]]:
    """What is known `seconds` after the start of how a run came out, and its colour RGB: nothing before success; on the
    last picture the verdict."""
    solved = bool(report.get("success")) and seconds >= report["success_after_s"]
    done = f"done at {report['success_after_s']:.1f} s" if solved else ""
    if not last:
        return done, GREEN if solved else DARK
    said = verdict(report)
    colour = DARK if "success" not in report else GREEN if report["success"] else RED
    return done if said == "done" and done else said, colour


def _line(width: int, text: str, colour: tuple[int, int, int]) -> np.ndarray:
    bar = np.full((BAR, width, 3), colour, np.uint8)
    cv2.putText(bar, text, (10, 21), cv2.FONT_HERSHEY_SIMPLEX, 0.58, (255, 255, 255), 1, cv2.LINE_AA)
    return bar


def _captioned(
    episode: Episode, report: Mapping[str, Any], t_ns: int, beside: np.ndarray, last: bool = False
) -> np.ndarray:
    """The pictures under two lines: instruction and outcome; time, expert in charge and gate."""
    k = int(np.searchsorted(episode.t_ns, t_ns).clip(0, len(episode.t_ns) - 1))
    expert, seconds = Expert(int(episode.expert[k])), max((t_ns - began_ns(episode, report)) * 1e-9, 0.0)
    said, colour = outcome(report, seconds, last)
    who = {Expert.NONE: "no plan yet", Expert.PLAN: "follows its plan"}.get(
        expert, f"{expert.name.lower()} expert   P(interaction) {episode.gate[k]:.2f}"
    )
    width = beside.shape[1]
    first = _line(width, f"{report['task']}{'   ' + said if said else ''}", colour)
    return np.vstack([first, _line(width, f"{seconds:5.1f} s   {who}", DRIVES.get(expert, GREY)), beside])


def _encoder(path: Path, width: int, height: int, fps: float) -> subprocess.Popen[bytes]:
    """ffmpeg, which takes RGB pictures and writes H.264."""
    import imageio_ffmpeg

    taken = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {fps:.3f} -i -"
    given = "-c:v libx264 -pix_fmt yuv420p -crf 23 -movflags +faststart"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *taken.split(), *given.split(), str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE)


def _views(t_ns: int, frames: dict[str, np.ndarray], overview: Overview | None) -> list[np.ndarray]:
    """Front, wrist and, where there is an overview, that one; black where this instant has none."""
    views = [frames["front"], frames["wrist"]]
    if overview is not None:
        whole = overview(t_ns)
        views.append(np.zeros_like(frames["front"]) if whole is None else whole)
    return views


def write_video(
    episode: Episode,
    shown: Iterable[tuple[int, dict[str, np.ndarray]]],
    path: Path,
    report: Mapping[str, Any],
    overview: Overview | None = None,
) -> None:
    """Front and wrist view side by side, and the overview if there is one (its pictures as wide for their height as the
    front ones); `shown` by capture time (`runtime.observe.episode.pictures`). The last picture stays for `LAST_S` with
    the verdict. Raises ReportError."""
    shown = iter(shown)
    first = next(shown, None)
    if first is None or not {"front", "wrist"} <= first[1].keys():
        raise ReportError(
            "the recording holds no pictures of both cameras, so there is no film and no page: check the cables and "
            "record again."
        )
    height, width = _beside(_views(*first, overview)).shape[:2]
    between = np.diff(episode.picture_ns)
    fps = 1e9 / float(np.median(between)) if len(between) else 15.0
    partial = path.with_name("episode.partial.mp4")
    encoder = _encoder(partial, width, height + 2 * BAR, fps)
    assert encoder.stdin is not None
    try:
        for t_ns, frames in itertools.chain([first], shown):
            beside = _beside(_views(t_ns, frames, overview))
            encoder.stdin.write(np.ascontiguousarray(_captioned(episode, report, t_ns, beside)).tobytes())
        ended = np.ascontiguousarray(_captioned(episode, report, t_ns, beside, last=True)).tobytes()
        for _ in range(round(LAST_S * fps)):
            encoder.stdin.write(ended)
        encoder.stdin.flush()
    except BrokenPipeError:
        pass  # the encoder has ended and said why
    with contextlib.suppress(BrokenPipeError):
        encoder.stdin.close()
    if encoder.wait():
        partial.unlink(missing_ok=True)
        raise ReportError(f"{path} cannot be encoded (see above): make room there, or name another folder.")
    partial.replace(path)
