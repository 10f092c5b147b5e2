"""`harmowam bundle show --plan`: kernels by role, what two bundles' plans have each that the other has not, and a
page."""

import json
from html.parser import HTMLParser
from typing import Any

import pytest
from msgspec.structs import replace

from export.tensorrt.compare import by_role, different
from export.tensorrt.gate import judged
from export.tensorrt.stored import write_plan
from harmowam.export import _print_orin
from runtime.engines.plan import PLAN
from tests.command import harmowam, refusal
from tests.onnx_files import quantised_conv
from tests.tiny import tiny_bundle


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """Plans of a convolution in INT8, and of one that stays in float because its scales have a dimension."""
    folder = tmp_path_factory.mktemp("plans")
    sources = quantised_conv(folder / "a.onnx"), quantised_conv(folder / "b.onnx", scale_shape=(1,))
    return [judged({"fast": source}, {"fast": 3}) for source in sources]


def bundle(folder, plan):
    made = tiny_bundle(folder)
    (made / "reports").mkdir(exist_ok=True)
    write_plan(plan, made / "reports" / PLAN)
    return made


def test_a_difference_tells_figures_roles_and_kernels(plans):
    before, after = (p.plans["fast"] for p in plans)
    assert by_role(before) == {"quantisation": 1, "product": 1, "movement": 1}
    found = different(before, after)
    assert found["figures"]["kernels"] == [3, 4] and found["figures"]["INT8 kernels"] == [1, 0]
    assert found["roles"]["product"] == [1, 1]
    assert found["only_before"]["correlation Int8[1, 16, 8, 8] -> Float[1, 16, 8, 8]"] == 1
    assert found["only_after"]["correlation Float[1, 16, 8, 8] -> Float[1, 16, 8, 8]"] == 1
    same = different(before, before)
    assert same["only_before"] == same["only_after"] == {} and all(a == b for a, b in same["figures"].values())


class Page(HTMLParser):
    """What a page loads, and its text."""

    def __init__(self, source):
        super().__init__()
        self.loads, self.text = [], ""
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self.loads += [v for k, v in attrs if k in ("src", "href")] + ([tag] if tag in ("script", "link") else [])

    def handle_data(self, data):
        self.text += data


def test_show_prints_the_plan_and_writes_a_page_of_its_own(plans, tmp_path):
    mine, other = bundle(tmp_path / "a", plans[0]), bundle(tmp_path / "b", plans[1])
    out = tmp_path / "new" / "plan.html"
    done = harmowam("bundle", "show", mine, "--plan", "--page", out, "--against", other, "--json", tmp_path / "p.json")
    assert done.exit_code == 0, done.output
    for words in ("1 quantisation, 1 product, 1 movement", "kernels 3 -> 4", "INT8 kernels 1 -> 0", f"page: {out}"):
        assert words in done.output
    facts = json.loads((tmp_path / "p.json").read_text())
    assert facts["engines"]["fast"]["kernels"] == 3 and facts["against"]["fast"]["roles"]["product"] == [1, 1]
    page = Page(out.read_text())
    assert page.loads == []
    for words in ("quantise", "dequantise", "conv", "Int8 1x16x8x8", "Float 1x16x8x8", "Only the other one has"):
        assert words in page.text


def test_a_bundle_without_a_plan_says_how_to_get_one(tmp_path):
    assert "holds no plan of TensorRT's compiler: export it again" in refusal(
        "bundle", "show", tiny_bundle(tmp_path), "--plan"
    )


def test_a_damaged_plan_is_refused(plans, tmp_path):
    made = bundle(tmp_path, plans[0])
    path = made / "reports" / PLAN
    path.write_text(path.read_text().replace('"Half"', '"Float12"').replace('"Float"', '"Float12"'))
    assert "plan.json cannot be read" in refusal("bundle", "show", made, "--plan")


def test_a_page_of_no_plan_is_refused(tmp_path):
    said = refusal("bundle", "show", tiny_bundle(tmp_path), "--page", tmp_path / "p.html")
    assert "--page means nothing without --plan" in said


def printed(bundle, capsys):
    report: dict[str, Any] = {}
    _print_orin(report, bundle, ["fast", "decoder"])
    return report, capsys.readouterr().out


def test_an_export_prints_times_from_its_plan(plans, tmp_path, capsys):
    report, said = printed(bundle(tmp_path, plans[0]), capsys)
    assert "from the compiled plans" in said and report["orin"][0]["fast"] > 0
    assert "TensorRT 10.3" not in said and "orin_inside" not in report  # no rounding follows the convolution


def test_where_a_rounding_follows_an_int8_convolution_it_prints_times_with_and_without_it(plans, tmp_path, capsys):
    engine = plans[0].plans["fast"]
    rounds = replace(engine.kernels[-1], name="__myl_MulRounCast_myl0_2")
    found = replace(plans[0], plans={"fast": replace(engine, kernels=(*engine.kernels[:-1], rounds))})
    report, said = printed(bundle(tmp_path, found), capsys)
    assert "as TensorRT 10.3 (JetPack 6) computes them" in said
    for apart, inside in zip(report["orin"], report["orin_inside"], strict=True):
        assert 0 < inside["fast"] < apart["fast"] and inside["decoder"] == apart["decoder"]


def test_without_a_plan_it_says_that_times_are_estimated(tmp_path, capsys):
    report: dict[str, Any] = {}
    _print_orin(report, tiny_bundle(tmp_path), ["fast"])
    said = capsys.readouterr().out
    assert "TensorRT on a Jetson Orin, estimated from the ONNX graph and therefore too short (for better" in said
    assert "orin_inside" not in report
