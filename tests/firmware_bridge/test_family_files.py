"""A file of an arm family that cannot drive an arm is named in one sentence, and keeps no other arm from moving."""

import sys
from pathlib import Path

import pytest

from firmware_bridge import arms

TOY = (Path(__file__).parent.parent / "toy_family/toy.py").read_text()


@pytest.fixture
def found(tmp_path, monkeypatch):
    """`_found` with files added to the folder of the families."""
    monkeypatch.setattr(arms, "__path__", [*arms.__path__, str(tmp_path)])

    def look(**files):
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        return arms._found()

    yield look
    for name in [n for n in sys.modules if n.startswith("firmware_bridge.arms.toy")]:
        del sys.modules[name]


def test_a_whole_file_is_found(found):
    good, unusable = found(toy=TOY)
    assert set(good) >= {"so101", "toy"} and not unusable


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("UPRIGHT = np.array", "OTHER = np.array", "its FAMILY lacks UPRIGHT, which firmware_bridge/arms/family.py"),
        ("SHUT = 0.1", "CLOSED = 0.1", "its FAMILY lacks SHUT"),
        ("[-2.0, -1.5, -1.8, -1.8, -2.5, 0.1]", "[-2.0, -1.5, -1.8, -1.8, 0.1]", "LOWER must hold one value for each"),
        ("[-2.0, -1.5, -1.8, -1.8, -2.5, 0.1]", "[2.1, -1.5, -1.8, -1.8, -2.5, 0.1]", "impossible limits of turn"),
        ("SHAPES = {", "BOXES = {", "its links have no boxes"),
        ("FAMILY = Toy()", "FAMILY = Toy", "its FAMILY must be an instance of a subclass"),
        ("FAMILY = Toy()", "FAMILY = Toy(", "it cannot be loaded (SyntaxError"),
    ],
)
def test_what_a_file_lacks_is_named_and_the_other_arms_stay(found, old, new, said):
    good, unusable = found(toy=TOY.replace(old, new))
    assert set(good) == {"so101", "koch", "viperx"}
    assert unusable["toy"].startswith(f"firmware_bridge/arms/toy.py: {said}")


def test_two_files_of_one_name_are_both_left_out(found):
    good, unusable = found(toy=TOY, toy_two=TOY)
    assert "toy" not in good
    assert unusable["toy"].endswith("toy_two.py: firmware_bridge/arms/toy.py names itself 'toy', too: rename one")


def test_a_robot_file_of_such_a_family_says_what_is_wrong_with_it(monkeypatch, tmp_path):
    from runtime.robot import SHIPPED, RobotError, load_robot

    monkeypatch.setitem(arms.UNUSABLE, "toy", "firmware_bridge/arms/toy.py: its FAMILY lacks UPRIGHT")
    text = (SHIPPED / "sim_so101.toml").read_text().replace('family = "so101"', 'family = "toy"')
    (tmp_path / "toy.toml").write_text(text)
    with pytest.raises(RobotError, match=r"'toy' is not usable: firmware_bridge/arms/toy\.py: its FAMILY lacks"):
        load_robot(str(tmp_path / "toy.toml"))
