"""The pictures of the pages in docs/images: `python -m benchmarks.screenshots` (about six minutes; Chromium and
`out/so101.bundle` are needed). `--pages FOLDER` takes the pages that an earlier call left there."""

from __future__ import annotations

import argparse
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from common.python import module_command
from sim.rehearsal import VirtualArm, plugged_in

IMAGES = Path("docs/images")
MOST_BYTES = 250_000
WIDTH = 1100  # px, of the window
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
TASK = "put the red cube on the plate"


@dataclass(frozen=True)
class Shot:
    """A picture `name`.png of the page at `path` below the folder of pages, `height` px of it at most."""

    name: str
    path: str
    height: int


SHOTS = (
    Shot("report", "demo/report.html", 1285),
    Shot("profile", "rehearsal/first/profile.html", 1400),
    Shot("intrinsics", "rehearsal/front-intrinsics.html", 1385),
    Shot("hand_eye", "rehearsal/front-hand-eye.html", 1275),
    Shot("joints", "rehearsal/joints.html", 900),
    Shot("cameras", "my_arm/cameras.html", 900),
)


def browser() -> str:
    """Path of Chromium; ends the program where there is none."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        sys.exit("error: Chromium takes the pictures: install it with `sudo apt-get install chromium`.")
    return found


def harmowam(folder: Path, *words: str) -> None:
    """Run the command with `folder` as its current one, so that pages name no path of this machine."""
    here = os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH"))))
    subprocess.run(
        module_command("harmowam.cli", *words), cwd=folder, env={**os.environ, "PYTHONPATH": here}, check=True
    )


def films(log: Path, folder: Path) -> list[str]:
    """One picture of each camera in the recorded run `log` as films in `folder`; returns the options that name them."""
    from runtime.observe.episode import load_episode, pictures

    _, frames = next(pictures(log, load_episode(log).picture_ns))
    options = []
    for name, rgb in frames.items():
        height, width = rgb.shape[:2]
        film = cv2.VideoWriter(str(folder / f"{name}.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 30, (width, height))
        film.write(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
        film.release()
        options += ["--camera", f"{name}={name}.avi"]
    return options


def make_pages(folder: Path, bundle: Path) -> None:
    """Write the pages of `SHOTS` into `folder`, by the commands that a user types; the robots are simulated."""
    shutil.copytree(bundle, folder / "out/so101.bundle")
    harmowam(folder, "demo", "--out", "demo", "--task", TASK)
    arm = VirtualArm()
    with plugged_in(arm.servos, folder / "servo-adapter"):
        port = ("--port", "servo-adapter", "--family", "so101")
        harmowam(folder, "setup", *port, *films(folder / "demo/run.mcap", folder), "--yes")
    harmowam(folder, "rehearse", "--out", "rehearsal")


def trimmed(picture: np.ndarray) -> np.ndarray:
    """uint8[H,W,3] without the lower rows that hold nothing but the background, save for a margin."""
    filled = np.flatnonzero((picture != picture[-1, 0]).any(axis=(1, 2)))
    return picture[: min(len(picture), int(filled[-1]) + 25)] if len(filled) else picture


def optimised(picture: np.ndarray) -> bytes:
    """PNG of a picture uint8[H,W,3] (RGB), as small as it goes without a loss."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "png", optimize=True)
    return out.getvalue()


def with_still(page: Path, scratch: Path) -> Path:
    """The page, or a copy of it in `scratch` with a picture from the middle of its film in place of the film: the
    browser would be caught while it loads it."""
    text = page.read_text()
    film = re.search(r'<video src="(.*?)".*?</video>', text)
    if film is None:
        return page
    capture = cv2.VideoCapture(str(page.parent / film[1]))
    capture.set(cv2.CAP_PROP_POS_FRAMES, capture.get(cv2.CAP_PROP_FRAME_COUNT) // 2)
    came, picture = capture.read()
    capture.release()
    if not came:
        sys.exit(f"error: the film of {page} cannot be read: make the pages again.")
    cv2.imwrite(str(scratch / "still.png"), picture)
    copy = scratch / page.name
    copy.write_text(text.replace(film[0], '<img alt="" style="width:100%;border-radius:6px" src="still.png">'))
    return copy


def take(program: str, page: Path, height: int) -> bytes:
    """A picture of the page, from its top, as PNG. Ends the program where the browser fails."""
    with tempfile.TemporaryDirectory() as scratch:
        raw = Path(scratch) / "raw.png"
        window = (f"--window-size={WIDTH},{height}", f"--screenshot={raw}", f"--user-data-dir={scratch}/profile")
        quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars")
        done = subprocess.run(
            [program, *quiet, *window, with_still(page.absolute(), Path(scratch)).as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        if not raw.is_file():
            sys.exit(f"error: {program} took no picture of {page}: {done.stderr.strip()[-300:]}")
        return optimised(trimmed(np.array(Image.open(raw).convert("RGB"))))


def main(arguments: Sequence[str] | None = None) -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--bundle", type=Path, default=Path("out/so101.bundle"))
    asked.add_argument(
        "--pages", type=Path, help="Folder for the pages, kept; pages that are there are not made again."
    )
    asked.add_argument("--out", type=Path, default=IMAGES)
    given = asked.parse_args(arguments)
    program = browser()
    with tempfile.TemporaryDirectory(prefix="harmowam-") as scratch:
        folder = given.pages or Path(scratch)
        if not all((folder / shot.path).is_file() for shot in SHOTS):
            make_pages(folder, given.bundle)
        given.out.mkdir(parents=True, exist_ok=True)
        for shot in SHOTS:
            png = take(program, folder / shot.path, shot.height)
            if len(png) > MOST_BYTES:
                sys.exit(f"error: {shot.name}.png has {len(png)} bytes, more than {MOST_BYTES}: lower its height.")
            (given.out / f"{shot.name}.png").write_bytes(png)
            print(f"{given.out / shot.name}.png: {len(png)} bytes")


if __name__ == "__main__":
    main()
