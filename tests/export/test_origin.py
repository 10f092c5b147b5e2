"""A bundle says what it was exported from: nothing is exported twice, and nobody's bundle is replaced unasked."""

import subprocess
import sys

import pytest

from export.origin import made_from, shipped
from export.plan import Plan
from harmowam.demo import shipped_bundle
from harmowam.export import same
from tests.command import harmowam
from tests.tiny import edit_manifest, tiny_bundle


@pytest.fixture
def bundle(tmp_path):
    """A bundle that says it was exported from the shipped checkpoint."""
    made = tiny_bundle(tmp_path)
    (made / "reports").mkdir()
    (made / "reports" / "parity.json").write_text('{"seconds": 50}')
    edit_manifest(made, lambda m: m["quantization"].update(origin=shipped()))
    return made


def test_the_default_plan_is_of_the_shipped_checkpoint():
    assert Plan().origin() == shipped()


@pytest.mark.parametrize(
    "plan",
    [Plan(precision="fp32"), Plan(target="tensorrt"), Plan(world_steps=1), Plan(recipe={"quantise": {}})],
    ids=["precision", "target", "steps", "recipe"],
)
def test_another_plan_makes_another_bundle(bundle, plan):
    assert same(Plan(), bundle) and not same(plan, bundle)


def test_a_bundle_that_failed_or_is_damaged_is_made_again(bundle):
    edit_manifest(bundle, lambda m: m["quantization"].update(failed=True))
    assert not made_from(bundle, shipped())
    edit_manifest(bundle, lambda m: m["quantization"].pop("failed"))
    assert made_from(bundle, shipped())
    (bundle / "onnx" / "fast.onnx").write_bytes(b"x")
    assert not made_from(bundle, shipped())


def test_export_keeps_a_bundle_that_it_would_make_again(bundle, tmp_path):
    before = (bundle / "manifest.json").read_bytes()
    done = harmowam("export", "--keep", "--out", bundle, "--json", tmp_path / "e.json")
    assert done.exit_code == 0 and f"bundle: {bundle} is there" in done.stdout
    assert (bundle / "manifest.json").read_bytes() == before and '"seconds": 50' in (tmp_path / "e.json").read_text()


def test_a_demo_takes_the_bundle_that_is_there(bundle, tmp_path):
    said: list[str] = []
    assert shipped_bundle(bundle, said.append) == bundle
    assert said == [f"1 of 3: {bundle} is there, exported from the shipped checkpoint"]


def test_a_demo_leaves_a_bundle_of_another_checkpoint_alone(bundle, tmp_path):
    (tmp_path / "mine").mkdir()
    bundle.rename(tmp_path / "mine" / "demo.bundle")
    mine = tiny_bundle(tmp_path / "mine")
    said: list[str] = []
    before = (mine / "manifest.json").read_bytes()
    assert shipped_bundle(mine, said.append) == tmp_path / "mine" / "demo.bundle"
    assert f"{mine} was exported from something else and stays as it is" in said[0]
    assert (mine / "manifest.json").read_bytes() == before


def test_a_demo_keeps_torch_out_of_the_measured_process():
    listing = "import sys, harmowam.demo; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
