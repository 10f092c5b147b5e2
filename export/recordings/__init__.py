"""Recordings of any LeRobot user, read as they lie: LeRobotDataset v2.0, v2.1 and v3, any rate, units and codec.

`examine` finds everything at once and raises nothing; `read` takes what is usable, at the policy's rate.
`export.lerobot` writes and reads the datasets of this project, which say their units and seal their files.
"""

from export.recordings.examine import examine
from export.recordings.findings import VIEWS, Examined, How, Problem
from export.recordings.read import read, refusal

__all__ = ["VIEWS", "Examined", "How", "Problem", "examine", "read", "refusal"]
