"""The bundle that a robot runs and the last good one: changed whole or not at all, and back."""

import fcntl
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.bundle import Bundle, BundleError
from runtime.promotion import PromotionError, promote, rollback
from runtime.signing import Trust, sign
from tests.command import harmowam, refusal
from tests.runtime.built import pretend_built
from tests.runtime.signers import signer, trusting
from tests.tiny import edit_manifest, tiny_bundle


@pytest.fixture
def made(tmp_path):
    """A bundle of a name."""

    def make(name):
        bundle = tiny_bundle(tmp_path / f"from {name}")
        edit_manifest(bundle, lambda m: m.update(name=name))
        return bundle

    return make


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "robot" / "bundles"


def names(folder):
    """Of the current bundle and of the one before."""
    links = [folder / name for name in ("current", "previous")]
    return [Bundle.load(link).manifest.name if link.exists() else None for link in links]


def copies(folder):
    return sorted(p.name for p in (folder / "bundles").iterdir())


def test_a_promoted_bundle_is_current_and_the_one_before_is_kept(made, folder):
    for name, now in (("a", ["a", None]), ("b", ["b", "a"]), ("c", ["c", "b"])):
        promote(Bundle.load(made(name)), folder)
        assert names(folder) == now
    assert len(copies(folder)) == 2
    rollback(folder)
    assert names(folder) == ["b", "c"]
    rollback(folder)
    assert names(folder) == ["c", "b"]


def test_the_copy_is_whole_and_stands_on_its_own(made, folder, tmp_path):
    source = made("a")
    (source / "reports").mkdir()
    (source / "reports/parity.json").write_text("{}")
    sign(source, signer(tmp_path, "ada").key)
    pretend_built(Bundle.load(source))
    (source / "notes.txt").write_text("no part of it")
    promote(Bundle.load(source), folder)
    there = {str(p.relative_to(source)): p.read_bytes() for p in source.rglob("*") if p.is_file()}
    del there["notes.txt"]
    copy = (folder / "current").resolve()
    assert {str(p.relative_to(copy)): p.read_bytes() for p in copy.rglob("*") if p.is_file()} == there
    (source / "onnx/fast.onnx").write_bytes(b"x")
    assert names(folder) == ["a", None]


def test_the_same_bundle_again_takes_its_new_signature_and_keeps_the_one_before(made, folder, tmp_path):
    for name in ("a", "b"):
        promote(Bundle.load(made(name)), folder)
    again = folder / "current"
    source = tmp_path / "from b" / "tiny.bundle"
    sign(source, signer(tmp_path, "ada").key)
    promote(Bundle.load(source), folder)
    assert names(folder) == ["b", "a"] and (again / "signature").is_file() and len(copies(folder)) == 2


def test_a_damaged_one_is_not_kept_as_the_last_good_one(made, folder):
    for name in ("a", "b"):
        promote(Bundle.load(made(name)), folder)
    (folder / "current/onnx/fast.onnx").write_bytes(b"x")
    promote(Bundle.load(made("c")), folder)
    assert names(folder) == ["c", "a"]


def test_a_damaged_one_does_not_become_current(made, folder):
    for name in ("a", "b"):
        promote(Bundle.load(made(name)), folder)
    (folder / "previous/onnx/fast.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match="does not match its hash"):
        rollback(folder)
    assert Bundle.load(folder / "current").manifest.name == "b"
    changed = Bundle.load(made("c"))
    (changed.path / "onnx/fast.onnx").write_bytes(b"x")  # after the look at it
    with pytest.raises(BundleError, match="does not match its hash"):
        promote(changed, folder)
    assert Bundle.load(folder / "current").manifest.name == "b"


def test_a_run_keeps_the_bundle_that_it_opened(made, folder):
    """Its engines are opened after its manifest: those of another bundle would not be its own."""
    promote(Bundle.load(made("a")), folder)
    opened = Bundle.load(folder / "current")
    promote(Bundle.load(made("b")), folder)
    assert opened.engine("fast").inputs and Bundle.load(opened.path).manifest.name == "a"


@pytest.mark.parametrize(
    ("verb", "whole"), [("promote", (["b", "a"], ["c", "b"])), ("rollback", (["b", "a"], ["a", "b"]))]
)
def test_killed_at_any_change_of_a_file_it_leaves_the_old_pair_or_the_new_one(made, folder, verb, whole):
    for name in ("a", "b"):
        promote(Bundle.load(made(name)), folder)
    command = [sys.executable, "-m", "tests.runtime.killed_promotion", verb, str(folder), str(made("c"))]
    deaths = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    left = [d["left"] for d in deaths]
    first = left.index(whole[1])
    assert left == [whole[0]] * first + [whole[1]] * (len(left) - first) and 0 < first < len(left) - 1
    assert all(d["tidy"] for d in deaths)
    if verb == "promote":
        assert [d["then"] for d in deaths] == [whole[1]] * len(deaths)


def test_the_first_one_killed_anywhere_leaves_none_or_it(made, folder):
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "tests.runtime.killed_promotion", "promote", str(folder), str(made("c"))]
    deaths = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert {tuple(d["left"]) for d in deaths} == {(None, None), ("c", None)}
    assert {tuple(d["then"]) for d in deaths} == {("c", None)}


def test_a_folder_in_use_or_for_other_things_is_left_alone(made, folder, tmp_path):
    bundle = Bundle.load(made("a"))
    with pytest.raises(PromotionError, match="holds no bundles: `harmowam bundle promote BUNDLE --to"):
        rollback(folder)
    assert not folder.exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "current").write_text("something")
    for other in (mine, mine / "current", Path("/dev/null/bundles")):
        with pytest.raises(
            PromotionError, match=r"holds other things than bundles|cannot be written \(Not a directory\)"
        ):
            promote(bundle, other)
    assert [p.name for p in mine.iterdir()] == ["current"]
    promote(bundle, folder)
    with pytest.raises(PromotionError, match="holds no bundle before the current one"):
        rollback(folder)
    with open(folder / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for work in (lambda: promote(bundle, folder), lambda: rollback(folder)):
            with pytest.raises(PromotionError, match="another process changes"):
                work()
    assert names(folder) == ["a", None]


def test_what_does_not_fit_on_the_disk_leaves_nothing(made, folder):
    """A limit of the size of files stands for a full disk."""
    promote(Bundle.load(made("a")), folder)
    bundle = Bundle.load(made("b"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        with pytest.raises(PromotionError, match=r"cannot be written \(File too large\): make room there"):
            promote(bundle, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(folder) == ["a", None] and len(copies(folder)) == 1


def test_promote_and_roll_back_from_the_command_line(made, tmp_path):
    """The robot file names the folder and whose bundles are trusted; `run` takes what is current."""
    ada = signer(tmp_path, "ada")
    (tmp_path / "signers").write_text(ada.line)
    robot = trusting(tmp_path, 'signers = "signers"', 'bundles = "kept"')
    a, b = made("a"), made("b")
    assert "is not signed" in refusal("bundle", "promote", a, "--robot", robot)
    assert not (tmp_path / "kept").exists()
    for bundle in (a, b):
        sign(bundle, ada.key)
        done = harmowam("bundle", "promote", bundle, "--robot", robot, "--json", tmp_path / "p.json")
        assert done.exit_code == 0, done.output
    assert f"current: b ({Bundle.load(b).digest[:12]}), {tmp_path}/kept/current" in done.output
    said = json.loads((tmp_path / "p.json").read_text())
    assert said["digest"] == Bundle.load(b).digest and said["previous"].startswith(f"{tmp_path}/kept/bundles/1-")
    assert harmowam("bundle", "rollback", "--robot", robot).output.startswith("current: a (")
    said = refusal("run", "--bundle", tmp_path / "kept/current", "--robot", robot, "--task", "none")
    assert "this bundle does not know the task 'none'" in said
    (tmp_path / "kept/previous/signature").unlink()
    assert "is not signed" in refusal("bundle", "rollback", "--robot", robot)


def test_promote_wants_a_folder_and_a_bundle_for_the_robots_arm(made, tmp_path):
    for verb in (("promote", made("a")), ("rollback",)):
        assert "no folder is named to keep bundles in: name one with --to" in refusal("bundle", *verb)
    said = refusal("bundle", "promote", made("b"), "--robot", "sim_koch", "--to", tmp_path / "kept")
    assert "was made for arms of the family 'so101'" in said and not (tmp_path / "kept").exists()
    done = harmowam("bundle", "promote", made("c"), "--to", tmp_path / "kept")
    assert done.exit_code == 0 and "before: none" in done.output


def test_trust_is_kept_by_the_copy(made, folder, tmp_path):
    source, ada = made("a"), signer(tmp_path, "ada")
    (tmp_path / "signers").write_text(ada.line)
    sign(source, ada.key)
    trust = Trust(tmp_path / "signers")
    assert promote(Bundle.load(source, trust), folder).trust == trust
