"""The verbs of `harmowam calibrate` as tests call them, and the sheet that their pictures show."""

from click.testing import CliRunner

from calibration.board import Board
from harmowam.cli import main

BOARD = "charuco:11x8:0.030:0.022:4x4_50"
SHEET = Board.parse(BOARD)


def calibrate(*args):
    """Result of `harmowam calibrate` with these arguments."""
    return CliRunner().invoke(main, ["calibrate", *map(str, args)])
