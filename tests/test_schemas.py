"""All declared shapes together: every number has two bounds, and every text a greatest length."""

import copy
import json
import subprocess
import sys
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin

import hypothesis
import hypothesis.strategies as st
import msgspec
import pytest
from click.testing import CliRunner

import calibration.camera
import calibration.check
import calibration.joints
import calibration.joints_lerobot
import calibration.store
import runtime.engines.listed
import runtime.manifest
import runtime.observe.profile
import runtime.robot
from common.errors import Mendable
from common.schema import Malformed, parse_json, parse_toml, shaped
from harmowam.cli import main
from runtime.bundle import Bundle
from runtime.engines import built
from runtime.engines.onnx import EngineError
from runtime.robot import SHIPPED, RobotFile, arm_config
from tests.tiny import tiny_bundle

TOPS = (
    runtime.robot.RobotFile,
    runtime.manifest.Manifest,
    calibration.store.Record,
    calibration.camera.CameraFile,
    calibration.joints.JointsFile,
    calibration.joints_lerobot.LeRobotJoint,
    calibration.check.ReferenceFile,
    runtime.engines.listed.EngineList,
    runtime.observe.profile.Report,
)


def endless(kind: Any, where: str, metas: tuple[Any, ...] = ()) -> list[str]:
    """The places in a declared type that hold a number without two bounds, or a text without a greatest length."""
    if get_origin(kind) is Annotated:
        return endless(get_args(kind)[0], where, (*metas, *get_args(kind)[1:]))
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind, include_extras=True)
        return [bad for name, inner in hints.items() for bad in endless(inner, f"{where}.{name}")]
    if kind in (int, float):
        ends = {end for m in metas for end in ("ge", "le") if getattr(m, end) is not None}
        return [] if ends == {"ge", "le"} else [where]
    if get_origin(kind) is Literal:
        return []
    return [bad for inner in get_args(kind) for bad in endless(inner, where)]


@pytest.mark.parametrize("top", TOPS, ids=lambda t: t.__name__)
def test_every_number_has_a_lower_and_an_upper_bound(top):
    assert endless(top, top.__name__) == []


def test_a_number_without_an_end_would_be_found():
    class Loose(msgspec.Struct):
        inner: dict[str, list[Annotated[float, msgspec.Meta(ge=0)]]]

    globals()["Loose"] = Loose  # the module in which its annotations are resolved
    assert endless(Loose, "Loose") == ["Loose.inner"]


def refusal(work: Callable[[], Any]) -> str:
    """The error sentence, in one line of readable length, or "" where the call succeeds. Any other exception is a
    defect."""
    try:
        work()
        return ""
    except (Malformed, Mendable) as e:
        said = str(e)
    assert said and "\n" not in said and len(said) < 700
    return said


@pytest.mark.parametrize("parse", [parse_json, parse_toml])
@hypothesis.given(data=st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode(errors="surrogatepass")))
def test_any_bytes_are_data_or_malformed(parse, data):
    refusal(lambda: parse(data))


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.just(10**400)
    | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(data: Any, so_far: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in plain data."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [p for k, v in items for p in ((*so_far, k), *places(v, (*so_far, k)))]


def broken(data: st.DataObject, whole: Any) -> Any:
    """`whole` with an arbitrary value in one of its places."""
    made = copy.deepcopy(whole)
    *way, last = data.draw(st.sampled_from(places(made)))
    spot = made
    for key in way:
        spot = spot[key]
    spot[last] = data.draw(ANYTHING)
    return made


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


@hypothesis.settings(max_examples=50)
@hypothesis.given(data=st.data())
def test_a_manifest_with_anything_in_it_is_loaded_or_refused_in_one_sentence(bundle, data):
    file = bundle / "manifest.json"
    before = file.read_bytes()
    file.write_text(json.dumps(broken(data, json.loads(before))))
    refusal(lambda: Bundle.load(bundle))
    file.write_bytes(before)


@hypothesis.settings(max_examples=50)
@hypothesis.given(data=st.data())
def test_a_robot_file_with_anything_in_it_is_a_robot_or_malformed(data):
    whole = parse_toml((SHIPPED / "sim_so101.toml").read_bytes())
    raw = broken(data, whole)
    refusal(lambda: arm_config(shaped(raw, RobotFile)))


REFUSED: dict[str, Any] = {
    "robot file, nested without end": ("r.toml", "x = " + "[\n" * 20_000, "nested more than 32 deep"),
    "robot file, a number of 400 digits": ("r.toml", "x = 1" + "0" * 400, "'x' is a whole number of more than 64 bits"),
    "robot file, 300-letter name": ("r.toml", "x" * 300 + " = 1", "is longer than 255 characters"),
    "robot file, no text": ("r.toml", b"\xff\xfe", "is not TOML"),
    "manifest, nested without end": ("b/manifest.json", "[" * 100_000, "nested more than 32 deep"),
    "manifest, a number of 400 digits": ("b/manifest.json", '{"schema": 1' + "0" * 400 + "}", "more than 64 bits"),
    "manifest, half a character": (
        "b/manifest.json",
        '{"schema": 2, "arm_family": "\\ud800"}',
        "half of a surrogate pair",
    ),
    "manifest, 300-letter name": ("b/manifest.json", '{"' + "x" * 300 + '": 1}', "is longer than 255 characters"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_command_says_one_sentence_and_ends_with_2(tmp_path, bundle, case):
    name, content, sentence = REFUSED[case]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    named = ["--robot", path, "--bundle", bundle] if path.suffix == ".toml" else ["--bundle", path.parent]
    done = CliRunner().invoke(main, ["run", *map(str, named)])
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit)
    assert sentence in done.stderr and len(done.stderr.splitlines()) == 1 and str(tmp_path) in done.stderr


def test_help_loads_no_schema():
    """It would add 20 ms to the time that a user waits for help."""
    listing = "import sys, harmowam.cli, harmowam.profile, harmowam.evaluate; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    assert "msgspec" not in done.stdout.split()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"engines": {}, "engines": {}}', "7", " " * 2_000_000])
def test_a_damaged_list_of_built_engines_is_refused(tmp_path, text):
    board = built.Board("Orin", "87", "10.3.0", "none", "", 8)
    folder = tmp_path / "engines" / board.key()
    folder.mkdir(parents=True)
    (folder / built.LISTING).write_text(text)
    with pytest.raises(EngineError, match=r"engines.json is damaged: run `harmowam build"):
        built.built_engine(tmp_path, "fast", "0" * 64, board)
