"""The plan that TensorRT made on this machine, beside the one that was exported: as the inspector tells it."""

import json

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from common.schema import Malformed
from harmowam.cli import main
from runtime.bundle import Bundle
from runtime.engines.built import LISTING
from runtime.engines.inspector import Inspected, Layer, compared, difference_lines, layers_of
from runtime.engines.onnx import OrtEngine
from runtime.engines.plan import PLAN, EnginePlan, Kernel, Plans, Tensor, exported_plans
from tests.runtime.built import BOARD, KEY
from tests.tiny import tiny_bundle

# The example of NVIDIA's documentation ("Engine Inspector", detailed verbosity), shortened.
CONVOLUTION = {
    "Name": "res4_branch2a_1 + res4_branch2a_bn_1",
    "LayerType": "CaskConvolution",
    "Inputs": [
        {
            "Name": "res3_bn_3",
            "Dimensions": [16, 512, 28, 28],
            "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format.",
        }
    ],
    "Outputs": [
        {
            "Name": "res4_bn_2",
            "Dimensions": [16, 256, 28, 28],
            "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format.",
        }
    ],
    "ParameterType": "Convolution",
    "Weights": {"Type": "Int8", "Count": 131072},
    "Bias": {"Type": "Float", "Count": 256},
    "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32kcrs_vect_c_32",
}


def layer(kind, dtypes, nodes, key="Format/Datatype", **more):
    names = "\x1f".join(f"[ONNX Layer: {n}]" for n in nodes)
    inputs = [{"Name": f"x{i}", "Dimensions": [1], key: dtype} for i, dtype in enumerate(dtypes)]
    return {"Name": "kernel", "LayerType": kind, "Inputs": inputs, "Outputs": [], "Metadata": names} | more


def listed(*layers):
    return json.dumps({"Layers": layers, "Bindings": ["x", "y"]})


def test_the_convolution_of_nvidia_s_documentation_multiplies_int8():
    (found,) = layers_of(listed(CONVOLUTION))
    assert found == Layer("Int8", True, ("res4_branch2a_1", "res4_branch2a_bn_1"))


@pytest.mark.parametrize(
    ("said", "dtype", "int8"),
    [
        (layer("gemm", ["Int8", "Int8"], ["a"]), "Int8", True),
        (layer("gemm", ["Int8"], ["a"], Constants=[{"Format/Datatype": "Int8"}]), "Int8", True),
        (layer("gemm", ["Int8"], ["a"], TacticName="sm80_xmma_gemm_i8i8_i8i32_f32_tn"), "Int8", True),
        (layer("gemm", ["Int8", "Int8"], ["a"], key="Datatype"), "Int8", True),  # TensorRT 11
        (layer("kgen", ["Int8"], ["dequantise"]), "Int8", False),
        (layer("kgen", ["Half", "Int8"], ["a"]), "Half", False),
        (layer("gemm", ["Row major linear FP16 format", "Half"], ["a"]), "Half", False),
        (layer("gemm", ["Row major linear FP32"], ["a"]), "Float", False),
    ],
)
def test_a_product_is_int8_where_both_factors_are(said, dtype, int8):
    (found,) = layers_of(listed(said))
    assert (found.dtype, found.int8) == (dtype, int8)


def test_the_nodes_behind_a_layer_are_read_with_escaped_and_with_bare_separators():
    text = listed(layer("kgen", ["Half"], ["a", "b[0]", "c"]))
    for said in (text, text.replace("\\u001f", "\x1e"), text.replace("]\\u001f", "]__gemm_from_conv1x1\\u001f")):
        assert layers_of(said)[0].nodes == ("a", "b[0]", "c")


@pytest.mark.parametrize(
    "said",
    ["", "{}", '{"Layers": []}', '{"Layers": ["conv + relu"]}', '{"Layers": [{"Name": "conv"}]}', '{"Layers": 3}'],
)
def test_another_form_is_an_error_and_not_an_engine_without_kernels(said):
    """Strings in the place of layers are what an engine says that was built without detailed verbosity."""
    with pytest.raises(Malformed):
        layers_of(said)


def kernel(nodes, kind="correlation", dtype="Int8"):
    tensors = [Tensor(name, (1,), dtype, "Linear") for name in ("x", "w")]
    return Kernel("k", kind, tuple(tensors), (), (), "", 0, nodes)


def exported(*kernels):
    return EnginePlan("1.7", ("SM86",), kernels, 11_600_000, 5, 17_000_000, 1.0)


# Two Euler steps multiply the same weights: both kernels name the node that dequantises them.
STEPS = exported(
    kernel(("conv_1", "dequantise_1", "weight")),
    kernel((), "signal"),
    kernel(("conv_2", "dequantise_2", "weight")),
    kernel(("softmax",), "kgen", "Half"),
)


def here(*layers):
    return Inspected(layers_of(listed(*layers)), 2, 9_800_000, 8_000_000)


def test_a_product_that_another_machine_multiplies_in_another_type_is_named():
    found = compared(
        STEPS,
        here(
            layer("CaskConvolution", ["Int8", "Int8"], ["weight", "conv_1", "norm"]),
            layer("NoOp", [], ["reshape"]),
            layer("CaskConvolution", ["Half", "Half"], ["weight", "conv_2"]),
        ),
    )
    assert found == {
        "kernels": [3, 2],
        "int8_kernels": [2, 1],
        "plan_megabytes": [11.6, 9.8],
        "activation_megabytes": [17.0, 8.0],
        "not_int8": {"conv_2": "Half"},
    }
    assert difference_lines(found) == [
        "exported -> here: kernels 3 -> 2, INT8 kernels 2 -> 1, plan MB 11.6 -> 9.8, activation MB 17 -> 8",
        "INT8 by the exported plan, but not here: conv_2 (Half)",
    ]


def test_a_product_that_no_layer_names_is_told_as_such():
    found = compared(STEPS, here(layer("Myelin", ["Float"], [])))
    assert found["not_int8"] == {"conv_1": "no layer of its own", "conv_2": "no layer of its own"}


def test_a_long_list_is_cut_in_the_output_and_whole_in_the_record():
    many = exported(*(kernel((f"conv_{i}",)) for i in range(9)))
    found = compared(many, here(layer("gemm", ["Half"], [f"conv_{i}" for i in range(9)])))
    assert len(found["not_int8"]) == 9
    assert difference_lines(found)[-1].endswith("conv_0 (Half), conv_1 (Half), conv_2 (Half) and 6 more")


class Built(OrtEngine):
    """In the place of an engine of TensorRT: ONNX Runtime computes, and the inspector says what a test wrote."""

    says = listed(layer("gemm", ["Half", "Half"], ["conv_1"]))

    def __init__(self, path, version_compatible=False):
        super().__init__(path, literal=True)

        self.kernels = 1

    def inspected(self):
        return self.says, 8_000_000

    def close(self):
        pass


@pytest.fixture
def built(tmp_path, monkeypatch):
    """`harmowam build` of a bundle with an exported plan of its fast engine; returns what it printed and its record."""

    def run(plans=Plans({"fast": STEPS}), says=Built.says):
        bundle = Bundle.load(tiny_bundle(tmp_path))
        (bundle.path / "reports").mkdir(exist_ok=True)
        (bundle.path / "reports" / PLAN).write_bytes(msgspec.json.encode(plans))
        monkeypatch.setattr(Built, "says", says)
        monkeypatch.setattr("runtime.build.this_board", lambda: BOARD)
        monkeypatch.setattr("runtime.build.build_engine", lambda source, *_: source.read_bytes())
        monkeypatch.setattr("runtime.build.TensorRTEngine", Built)
        feeds = {
            name: [{k: np.ones(shape, np.float32) for k, shape in e.inputs.items()}]
            for name, e in bundle.manifest.engines.items()
        }
        monkeypatch.setattr("runtime.build.observations", lambda bundle: feeds)
        monkeypatch.setattr("runtime.build.COSINE", -1.0)  # the toy engines' outputs are constant
        done = CliRunner().invoke(main, ["build", str(bundle.path)])
        assert done.exit_code == 0, done.output
        return done.output, json.loads((bundle.path / "engines" / KEY / LISTING).read_text())["engines"]

    return run


def test_a_build_says_and_records_what_differs_from_the_exported_plan(built):
    said, record = built()
    assert "INT8 by the exported plan, but not here: conv_1 (Half), conv_2 (no layer of its own)" in said
    assert record["fast"]["plan"]["kernels"] == [3, 1] and record["fast"]["plan"]["activation_megabytes"] == [17.0, 8.0]
    assert record["decoder"]["plan"] == {"missing": "it holds none of decoder"}


@pytest.mark.parametrize(
    ("plans", "says", "why"),
    [
        (Plans(missing="TensorRT for RTX cannot be loaded"), Built.says, "TensorRT for RTX cannot be loaded"),
        ({"plans": {"fast": "none"}}, Built.says, "plan.json cannot be read"),
        (Plans({"fast": STEPS}), '{"Layers": ["conv"]}', "TensorRT's inspector cannot be understood here"),
    ],
)
def test_no_build_fails_for_want_of_a_plan_to_compare_with(built, plans, says, why):
    said, record = built(plans, says)
    assert "fast" in said and "not compared with the exported plan: " in said and why in said
    assert why in record["fast"]["plan"]["missing"]


@pytest.mark.parametrize("damage", [b"", b"[", b'{"missing": "\xff"}', b'{"x": ' + b"[" * 100_000])
def test_a_damaged_plan_of_a_bundle_is_one_that_is_missing(tmp_path, damage):
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / PLAN).write_bytes(damage)
    found = exported_plans(tmp_path)
    assert found.plans == {} and "plan.json cannot be read" in found.missing
