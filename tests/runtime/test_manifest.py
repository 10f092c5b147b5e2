"""A manifest that is well written JSON and still describes no arm and no policy that could be driven: refused by the
name of the field."""

import json
import shutil
from typing import Any

import pytest

from runtime.bundle import Bundle, BundleError, save_bundle
from tests.tiny import tiny_bundle


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "copy.bundle")


def refusal(path):
    with pytest.raises(BundleError) as e:
        Bundle.load(path)
    said = str(e.value)
    assert (
        str(path) in said and said.isprintable() and len(said) < 700 and ": copy it again from the workstation" in said
    )
    return said


# Where in the manifest, what is put there, and what is said. "-" takes the key away.
CASES: dict[str, tuple[str, Any, str]] = {
    "one bit turned in a length": (
        "links.upper_up",
        4.11257,
        "'links.upper_up' must be a number from -2 to 2, not 4.11257",
    ),
    "a length half as long again": (
        "links.upper_up",
        0.17257,
        "'links.upper_up' must be a number from 0.0826 to 0.1426 (m)",
    ),
    "a length of nothing": ("links.wrist_to_tcp", 0, "'links.wrist_to_tcp' must be a number from 0.1292 to 0.1892"),
    "a length below nothing": ("links.lower_forward", -1, "'links.lower_forward' must be a number from"),
    "a length like to the moon": ("links.lower_forward", 1e9, "'links.lower_forward' must be a number from -2 to 2"),
    "a length that is no number": (
        "links.lower_forward",
        float("nan"),
        "'links.lower_forward' must be a finite number",
    ),
    "a link missing": ("links.upper_up", "-", "'links.upper_up' is missing"),
    "a link that no such arm has": (
        "links.uper_up",
        0.11257,
        "'links.uper_up' is no link of this arm (these are: lower_for",
    ),
    "one bit turned in a limit": ("joints.2.upper", 5.69, "'joints' holds impossible limits of elbow_flex"),
    "limits of many turns": (
        "joints.2.upper",
        100,
        "'joints[2].upper' must be a number from -6.2832 to 6.2832, not 100",
    ),
    "limits the wrong way round": ("joints.2.lower", 1.9, "'joints' holds impossible limits of elbow_flex"),
    "no joints": (
        "joints",
        [],
        "'joints' must be shoulder_pan, shoulder_lift, elbow_flex, wrist_flex, wrist_roll, gripper in",
    ),
    "a joint too few": ("joints.5", "-", "wrist_roll, gripper in this order, not shoulder_pan"),
    "joints of another order": ("joints.0.name", "gripper", "in this order, not gripper, shoulder_lift"),
    "a joint without a limit": ("joints.0.upper", "-", "'joints[0].upper' is missing"),
    "a time that runs backwards": ("chunk.dt_ms", -50, "'chunk.dt_ms' must be a whole number from 5 to 1000, not -50"),
    "a time that stands": ("chunk.dt_ms", 0, "'chunk.dt_ms' must be a whole number from 5 to 1000, not 0"),
    "no steps": ("chunk.steps", 0, "'chunk.steps' must be a whole number from 1 to 1000, not 0"),
    "more steps than rows": ("chunk.steps", 17, "'mean' and 'std' must hold 17 rows of equal length"),
    "no spread": ("chunk.std.3.2", 0, "'chunk.std[3][2]' must be a number from 1e-06 to 100, not 0"),
    "an endless mean": ("chunk.mean.3.2", float("inf"), "'chunk.mean[3][2]' must be a finite number, not inf"),
    "a row of another length": ("chunk.mean.3", [0.0] * 5, "rows of equal length"),
    "a gate that cannot shut": ("gate.off", 2, "'gate.off' must be a number from 0 to 1, not 2"),
    "a gate open and shut at once": ("gate.off", 0.9, "'off' 0.9 must not be above 'on' 0.5"),
    "a finish that no engine tells": ("gate.done", 0.9, "'gate.done' needs an engine 'world_model' that gives 'done'"),
    "a gate without an end": ("gate.off", "-", "'gate.off' is missing"),
    "pictures of a town": (
        "preprocess.size",
        [96, 10**6],
        "'preprocess.size[1]' must be a whole number from 8 to 2048",
    ),
    "pictures of another size": ("preprocess.size", [96, 48], "must be of the size that 'preprocess.size' says"),
    "pictures without contrast": (
        "preprocess.std",
        [0.5, 0, 0.5],
        "'preprocess.std[1]' must be a number from 0.001 to 2",
    ),
    "pictures of two colours": (
        "preprocess.mean",
        [0.5, 0.5],
        "'preprocess.mean' must be a list of 3: a number from 0 to 1 each",
    ),
    "a heat map of no cells": (
        "reactive.heatmap",
        0,
        "'reactive.heatmap' must be a whole number from 4 to 1024, not 0",
    ),
    "a camera without a lens": ("cameras.front.K.0.0", 0, "'cameras.front' holds impossible intrinsics"),
    "no camera at all": ("cameras", {}, "'cameras' must name one or more"),
    "a camera that is a number": ("cameras.front", 7, "'cameras.front' must be a table of keys, not 7"),
    "no tasks": ("tasks", {}, "'tasks' must be a table of 1 to 1000 keys, not an empty one"),
    "tasks of two lengths": ("tasks.other", [0.1], "'tasks' must hold equally many numbers each"),
    "a task that is a number": (
        "tasks.other",
        7,
        "'tasks.other' must be a list of 1 to 4096: a number from -10000 to 10000",
    ),
    "engines without outputs": (
        "engines.fast.outputs",
        None,
        "'engines.fast.outputs' must be a list of 1 to 64: a name",
    ),
    "engines with no outputs": ("engines.fast.outputs", [], "'engines.fast.outputs' must be a list of 1 to 64"),
    "an output misspelt": (
        "engines.fast.outputs",
        ["heat", "reach", "gait"],
        "'engines.fast' must take front, future, proprio",
    ),
    "an input missing": (
        "engines.fast.inputs.wrist",
        "-",
        "'engines.fast' must take front, future, proprio, wrist and give",
    ),
    "an input of another size": (
        "engines.fast.inputs.front",
        [1, 3, 48, 96],
        "'engines.fast.inputs.front' must be [1, 3, 96, 96]",
    ),
    "text of another width": (
        "engines.world_model.inputs.text",
        [1, 7],
        "'engines.world_model.inputs.text' must be [1, 32]",
    ),
    "plans of another length": (
        "engines.predictive.inputs.noise",
        [1, 8, 6],
        "'engines.predictive.inputs.noise' must be [1, 16, 6]",
    ),
    "a tensor without a size": (
        "engines.fast.inputs.front",
        [1, 3, 0, 96],
        "'engines.fast.inputs.front[2]' must be a whole number",
    ),
    "an engine elsewhere": ("engines.fast.file", "../fast.onnx", "'engines.fast.file' must be a path in the bundle"),
    "a file elsewhere": (
        "files./etc/passwd",
        "0" * 64,
        "the name '/etc/passwd' in 'files' must be a path in the bundle",
    ),
    "a hash that is none": ("files.samples.npz", "abc", "'files.samples.npz' must be a SHA-256, not 'abc'"),
    "a name of 300 letters": ("tasks." + "x" * 300, [0.1] * 32, "in 'tasks' is longer than 255 characters"),
    "a file of 300 letters": ("files." + "x" * 200, "0" * 64, "in 'files' must be a path in the bundle"),
    "half a character": ("name", "\ud800", "'name' is no text (half of a surrogate pair)"),
    "half a character in a name": ("tasks.\udfff", [0.1] * 32, "the name '\\udfff' in 'tasks' is no text"),
    "a name of two lines": ("name", "a\nb", "'name' must be text in one line, not 'a\\nb'"),
    "a number of 400 digits": ("chunk.steps", 10**400, "'chunk.steps' is a whole number of more than 64 bits"),
    "a truth for a number": ("chunk.steps", True, "'chunk.steps' must be a whole number from 1 to 1000, not true"),
    "a field that nobody knows": ("colour", "red", "'colour' is no key that is known here (arm_family, cameras, "),
}


def put(manifest: Any, where: str, value: Any) -> None:
    """Set what `where` names; the last part may hold dots (a file's name)."""
    while True:
        head, dot, rest = where.partition(".")
        key = int(head) if isinstance(manifest, list) else head
        if not dot or where in manifest or (isinstance(manifest, dict) and head not in manifest):
            break
        manifest, where = manifest[key], rest
    if value == "-":
        del manifest[key]
    else:
        manifest[int(where) if isinstance(manifest, list) else where] = value


@pytest.mark.parametrize("case", CASES)
def test_what_no_arm_and_no_policy_has_is_refused_by_name(copy, case):
    where, value, sentence = CASES[case]
    manifest = json.loads((copy / "manifest.json").read_text())
    put(manifest, where, value)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert sentence in refusal(copy)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('"upper_up": 0.11257', '"upper_up": 0.11257, "upper_up": 0.2', "'upper_up' is given twice"),
        ('"name": "tiny"', '"name": ' + "[" * 100_000, "nested more than 32 deep"),
        ('"name": "tiny"', '"name": ' + "[" * 40 + "]" * 40, "nested more than 32 deep"),
        ('"name": "tiny"', '"name": ' + "9" * 5000, "it is no JSON ("),
        ('"name": "tiny"', '"name": "' + "x" * 5_000_000 + '"', "it is larger than 4096 KiB"),
        ('"name": "tiny"', '"name": "tiny', "it is no JSON (Invalid control character"),
        ('{\n "arm_family"', '[\n "arm_family"', "it is no JSON (Expecting ',' delimiter"),
    ],
    ids=["twice", "deep", "deeper-than-any", "5000-digits", "large", "quote", "bracket"],
)
def test_what_is_no_sound_json_is_refused(copy, old, new, sentence):
    text = (copy / "manifest.json").read_text()
    assert old in text
    (copy / "manifest.json").write_text(text.replace(old, new, 1))
    assert sentence in refusal(copy)


@pytest.mark.parametrize("text", ["7", "[]", "null", '"so101"', "{}", '{"schema": 2}', "\xff"])
def test_what_is_no_manifest_is_refused(copy, text):
    (copy / "manifest.json").write_bytes(text.encode("latin-1"))
    assert "manifest.json is damaged (" in refusal(copy)


def test_what_could_not_be_read_is_not_written(tiny, tmp_path):
    """The export refuses it, not the robot."""
    manifest = Bundle.load(tiny).manifest
    manifest.chunk.std[3][2] = 0.0
    with pytest.raises(
        BundleError, match=r"'chunk.std\[3\]\[2\]' must be .*, it is not written: train the policy again"
    ):
        save_bundle(tmp_path / "out.bundle", manifest, {})
    assert list(tmp_path.iterdir()) == []
