"""Engines are built after a bundle was signed: a robot with [trust] loads those of a list that its user cannot
write."""

import contextlib
import dataclasses
import json
import os
import tempfile
from pathlib import Path

import pytest

from runtime.bundle import Bundle, sha256
from runtime.compute import Chosen, Compute, ComputeError, choose
from runtime.doctor.trust import trust
from runtime.engines.built import LISTING, built_engine
from runtime.engines.listed import UntrustedEngine, add, reach, require_writable
from runtime.robot import load_robot
from runtime.signing import Trust, sign
from tests.runtime.built import BOARD, pretend_built
from tests.runtime.signers import signer, trusting
from tests.tiny import tiny_bundle

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")
RUNNER, OTHER = 65534, 65533  # users that need no entry in /etc/passwd


@contextlib.contextmanager
def as_user(uid):
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def robot():
    """A folder of root that everybody may look into, as /etc/harmowam is; pytest's own is closed to other users."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def bundle(robot):
    """A signed one with stand-ins for engines, which lie in a list of root's."""
    path = tiny_bundle(robot)
    ada = signer(robot, "ada")
    (robot / "signers").write_text(ada.line)
    sign(path, ada.key)
    opened = Bundle.load(path, Trust(robot / "signers", robot / "etc/engines.json"))
    add(robot / "etc/engines.json", built(opened))
    return opened


def built(bundle):
    """What a build says of its engines."""
    return json.loads((pretend_built(bundle) / LISTING).read_text())["engines"]


def found(bundle, name="fast"):
    with as_user(RUNNER):
        onnx = bundle.manifest.files[bundle.manifest.engines[name].file]
        return built_engine(bundle.path, name, onnx, BOARD, bundle.trust)


def test_a_listed_engine_is_loaded(bundle):
    assert found(bundle)[0].name == "fast.engine"


def exchanged(bundle, name, engine):
    """The robot's own user puts `engine` in the place of another one, in the bundle's own listing, too."""
    (file,) = (bundle.path / "engines").glob(f"*/{name}.engine")
    file.write_bytes(engine)
    listing = json.loads((file.parent / LISTING).read_text())
    listing["engines"][name]["sha256"] = sha256(file)
    (file.parent / LISTING).write_text(json.dumps(listing))


def test_an_engine_that_is_not_listed_is_refused(bundle):
    exchanged(bundle, "fast", b"an engine of somebody's own")
    with pytest.raises(UntrustedEngine, match=r"engine fast is not one that \S+ lists: build it again with `sudo"):
        found(bundle)
    assert found(bundle, "decoder")


def test_an_engine_that_is_listed_for_another_one_is_refused(bundle):
    """Or an old bundle's fast engine could be put into the new one."""
    (decoder,) = (bundle.path / "engines").glob("*/decoder.engine")
    exchanged(bundle, "fast", decoder.read_bytes())
    with pytest.raises(UntrustedEngine, match="fast is not one that"):
        found(bundle)


def of_the_runner(robot):
    os.chown(robot / "etc/engines.json", RUNNER, RUNNER)


def for_the_group(robot):
    os.chmod(robot / "etc/engines.json", 0o664)


def for_everybody(robot):
    os.chmod(robot / "etc/engines.json", 0o646)


def in_a_folder_of_the_runner(robot):
    os.chown(robot / "etc", RUNNER, RUNNER)


def below_a_folder_of_the_runner(robot):
    os.chown(robot, RUNNER, RUNNER)


def in_a_folder_for_everybody(robot):
    os.chmod(robot / "etc", 0o777)


def below_a_folder_for_everybody(robot):
    os.chmod(robot, 0o777)


def behind_a_link(robot):
    (robot / "etc/engines.json").rename(robot / "etc/real.json")
    (robot / "etc/engines.json").symlink_to(robot / "etc/real.json")


def missing(robot):
    (robot / "etc/engines.json").unlink()


WITHIN_REACH = {
    of_the_runner: "belongs to the user that runs: run `sudo chown root:root {0}/etc/engines.json",
    for_the_group: "{0}/etc/engines.json may be written by more than its owner: run `sudo chown",
    for_everybody: "{0}/etc/engines.json may be written by more than its owner",
    in_a_folder_of_the_runner: "{0}/etc belongs to the user that runs",
    below_a_folder_of_the_runner: "{0} belongs to the user that runs",
    in_a_folder_for_everybody: "{0}/etc may be written by more than its owner",
    below_a_folder_for_everybody: "{0} may be written by more than its owner",
    behind_a_link: "it is reached through a link: name {0}/etc/real.json in",
    missing: "{0}/etc/engines.json cannot be looked at (No such file or directory): run `sudo harmowam build",
}


@pytest.mark.parametrize("open_up", WITHIN_REACH, ids=lambda f: f.__name__)
def test_a_list_that_the_robots_user_can_write_protects_nothing(bundle, robot, open_up):
    open_up(robot)
    with pytest.raises(UntrustedEngine) as refused:
        found(bundle)
    assert f"the list of engines {robot}/etc/engines.json protects nothing, for" in str(refused.value)
    assert WITHIN_REACH[open_up].format(robot) in str(refused.value)


def test_a_list_of_a_third_user_is_out_of_reach(bundle, robot):
    os.chown(robot / "etc/engines.json", OTHER, OTHER)
    assert found(bundle)


def test_root_can_write_every_list(bundle):
    assert "root may write everything: start as another user" in reach(bundle.trust.engines)


def test_without_a_list_no_engine_is_loaded(bundle):
    trust = dataclasses.replace(bundle.trust, engines=None)
    with pytest.raises(UntrustedEngine, match="names no list of engines"):
        found(dataclasses.replace(bundle, trust=trust))


@pytest.mark.parametrize("text", ["{", '{"engines": {"x": {}}}', "7", " " * 2_000_000])
def test_a_damaged_list_is_refused_and_left_as_it_is(bundle, robot, text):
    (robot / "etc/engines.json").write_text(text)
    with pytest.raises(UntrustedEngine, match="cannot be used"):
        found(bundle)
    with pytest.raises(UntrustedEngine, match="cannot be used"):
        add(robot / "etc/engines.json", {})
    assert (robot / "etc/engines.json").read_text() == text


def test_a_run_does_not_go_on_without_an_engine_that_was_exchanged(bundle, monkeypatch):
    """By "auto" it goes on with the CPU where engines are missing, but not where somebody put others in their place."""
    monkeypatch.setattr("runtime.compute.this_board", lambda: BOARD)
    with as_user(RUNNER):
        assert choose(bundle, Compute()) == Chosen("tensorrt")
    exchanged(bundle, "fast", b"an engine of somebody's own")
    with as_user(RUNNER):
        for asked in ("auto", "tensorrt"):
            with pytest.raises(ComputeError, match="fast is not one that"):
                choose(bundle, Compute(engine=asked))
        assert choose(bundle, Compute(engine="cpu")) == Chosen("cpu")


def test_what_is_built_again_is_listed_beside_what_was(bundle, robot):
    old = json.loads((robot / "etc/engines.json").read_text())["engines"]
    exchanged(bundle, "fast", b"built again")
    (listing,) = (bundle.path / "engines").glob(f"*/{LISTING}")
    add(robot / "etc/engines.json", json.loads(listing.read_text())["engines"])
    assert json.loads((robot / "etc/engines.json").read_text())["engines"].items() > old.items()
    assert found(bundle)


def test_a_build_whose_engines_could_not_be_listed_is_refused_before_it_begins(bundle):
    require_writable(bundle.trust)
    with as_user(RUNNER), pytest.raises(UntrustedEngine, match="which this user may not write: run `sudo harmowam"):
        require_writable(bundle.trust)
    with pytest.raises(UntrustedEngine, match="names no list of engines"):
        require_writable(dataclasses.replace(bundle.trust, engines=None))


def test_the_list_is_named_beside_the_robot_file_or_anywhere(tmp_path):
    file = trusting(tmp_path, 'signers = "signers"\nengines = "/etc/harmowam/engines.json"')
    assert load_robot(str(file)).trust == Trust(tmp_path / "signers", Path("/etc/harmowam/engines.json"))


def test_the_doctor_looks_at_the_list(robot, bundle):
    file = trusting(robot, 'signers = "signers"\nengines = "etc/engines.json"')
    with as_user(RUNNER):
        assert {f.name: f.state for f in trust(load_robot(str(file)))}["listed engines"] == "ok"
    os.chmod(robot / "etc/engines.json", 0o666)
    with as_user(RUNNER):
        found = next(f for f in trust(load_robot(str(file))) if f.name == "listed engines")
    assert found.state == "bad" and found.mend.startswith("run `sudo chown root:root")
