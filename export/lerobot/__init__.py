"""LeRobotDataset v3 folders, written and read without lerobot: tables (parquet), pictures (mp4), meta.

    data/chunk-000/file-NNN.parquet                          a row per control step: observation.state, action, indices
    videos/observation.images.<camera>/chunk-000/file-NNN.mp4
    meta/episodes/chunk-000/file-NNN.parquet          a row per episode: where rows and pictures lie, statistics, extras
    meta/info.json, stats.json, tasks.parquet                features and totals, statistics, instructions
    meta/harmowam.json                                       ours: units of state and action, cameras of the pictures

Several processes write *parts*: one file of each kind, `NNN` is the part, indices count from the part's start. `finish`
numbers them consecutively and writes the files that exist once per dataset, info.json last. Layout and names:
github.com/huggingface/lerobot, docs "LeRobotDataset v3.0".
"""

from export.lerobot.layout import DataError, Dataset, Episode, write_json
from export.lerobot.raw import Raw, raw_observations
from export.lerobot.reader import load, read_cameras
from export.lerobot.writer import CHUNK_SIZE, common_note, finish, part_exists, write_part

__all__ = [
    "CHUNK_SIZE",
    "DataError",
    "Dataset",
    "Episode",
    "Raw",
    "common_note",
    "finish",
    "load",
    "part_exists",
    "raw_observations",
    "read_cameras",
    "write_json",
    "write_part",
]
