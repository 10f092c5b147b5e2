"""What a profile advises: the stage that binds, the predicted gain, the command; nothing where all is well."""

import copy
import shlex
from dataclasses import replace
from pathlib import Path

import click
import pytest

from harmowam.cli import main
from runtime.observe.advice import MOST, NOT_PREDICTED, ROOFLINE, Facts, advice

PERIODS = {"slow": 125.0, "motor": 10.0}
MEASURED = {  # p50, p99 in ms of `harmowam profile --seconds 10` on two busy cores
    "observation.age": (8.89, 9.0),
    "fast.take": (0.09, 0.16),
    "fast.preprocess": (0.28, 0.47),
    "fast.engine": (1.7, 2.04),
    "fast.gate": (0.23, 0.37),
    "fast.handover": (0.04, 0.14),
    "fast.command": (0.18, 0.3),
    "fast.slot": (0.09, 0.27),
    "wire": (0.25, 0.38),
    "slow.preprocess": (0.47, 0.92),
    "slow.world_model": (4.83, 6.98),
    "slow.predictive": (3.07, 4.89),
    "motor.read": (1.31, 1.39),
    "motor.write": (0.05, 0.13),
    "motor.telemetry": (0.77, 1.06),
    "motor.wake": (0.02, 0.05),
}
GOOD = {
    "engine": "onnxruntime",
    "kind": "harmowam",
    "fast_hz": 49.9,
    "repeat_hz": 0.0,
    "slow_hz": 8.1,
    "ticks": 499,
    "deadline_misses": 0,
    "prior_age_ms": {"p50": 89.3, "p99": 149.3},
    "processors": {"busy": 0.9, "stolen": 0.001},
    "real_time": {"sched_fifo": True},
    "board": {"cores": 2, "model": "AMD EPYC"},
    "stages": {
        s: {"p50_ms": p50, "p99_ms": p99, "budget_ms": PERIODS.get(s.partition(".")[0], 20.0)}
        for s, (p50, p99) in MEASURED.items()
    },
}
INT8 = {"format": "int8 qdq", "target": "onnxruntime", "float": "float32"}
STEPS = {"slow.world_model": 2, "slow.predictive": 4}
SIM = Facts("out/so101.bundle", "sim_so101", 50.0, True, INT8, STEPS)
ARM = replace(SIM, bundle="orin.bundle", robot="my_arm/robot.toml", simulated=False)
UNBUILT = (
    "engines run on the CPU (ONNX Runtime); TensorRT would be faster, but orin.bundle has no TensorRT engines: run "
)
UNBUILT += "`harmowam build orin.bundle` on this machine."
FIFO = "run `sudo groupadd -f realtime`, `sudo usermod -aG realtime $USER`, and log in again"
NANO = {"model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"}
TRT = {**INT8, "target": "tensorrt"}


def run(stages=None, **changed):
    """GOOD with other p50 and p99 of some stages, and other fields."""
    out = {**copy.deepcopy(GOOD), **changed}
    for stage, (p50, p99) in (stages or {}).items():
        out["stages"][stage].update(p50_ms=p50, p99_ms=p99)
    return out


SLOW_ENGINE = {"slow.world_model": (90.0, 110.0), "slow.predictive": (40.0, 60.0)}
FAST_ENGINE = {"fast.engine": (21.0, 26.0)}


def test_nothing_is_advised_where_every_budget_is_kept():
    assert advice(GOOD, replace(ARM, quantization=TRT, note=UNBUILT, mends={"GPU clock": "`sudo jetson_clocks`"})) == []
    assert advice(run(processors={"busy": 1.0, "stolen": 0.2}, real_time={"sched_fifo": False}), SIM) == []


CASES = {
    "of n flow steps all but one are saved: 90/2 + 40*3/4": (
        run(SLOW_ENGINE),
        SIM,
        "slow.world_model: 90.0 ms of a slow step of 130.5 ms (p50), period 125.0 ms",
        "at most 75.0 ms of a slow step (flow steps: slow.world_model 2 to 1, slow.predictive 4 to 1)",
        (
            "harmowam distill CHECKPOINT --out student.safetensors && harmowam export student.safetensors "
            "--target onnxruntime --precision int8 --out student.bundle"
        ),
    ),
    "engines that are not built, on a board of the published table": (
        run(SLOW_ENGINE, board=NANO),
        replace(ARM, quantization=TRT, note=UNBUILT),
        "slow.world_model: 90.0 ms",
        "slow.world_model from 90.00 ms on the CPU to 1.19 ms (roofline of the shipped networks, Orin Nano at 25 W)",
        "harmowam build orin.bundle --robot my_arm/robot.toml",
    ),
    "engines that are not built, on another board": (
        run(FAST_ENGINE, deadline_misses=20),
        replace(ARM, quantization=TRT, note=UNBUILT),
        "fast.engine: 26.0 ms at p99 of a period of 20.0 ms; 4.01% of the deadlines missed",
        NOT_PREDICTED,
        "harmowam build orin.bundle --robot my_arm/robot.toml",
    ),
    "engines that are not built, and a bundle that TensorRT does not take": (
        run(FAST_ENGINE, deadline_misses=20, board=NANO),
        replace(ARM, note=UNBUILT),
        "fast.engine",
        "fast.engine from 21.00 ms on the CPU to 0.33 ms (roofline of the shipped networks, Orin Nano at 25 W)",
        (
            "harmowam export CHECKPOINT --target tensorrt --out trt.bundle "
            "&& harmowam build trt.bundle --robot my_arm/robot.toml"
        ),
    ),
    "a Jetson without TensorRT": (
        run(FAST_ENGINE, deadline_misses=20, board={"model": "NVIDIA Jetson Orin NX"}),
        replace(ARM, note="TensorRT cannot be loaded: on a Jetson run `sudo apt-get install python3-libnvinfer`."),
        "fast.engine",
        NOT_PREDICTED,
        "sudo apt-get install python3-libnvinfer",
    ),
    "what stays float in FP16, under TensorRT": (
        run(FAST_ENGINE, deadline_misses=20, engine="tensorrt", board=NANO),
        replace(ARM, quantization=TRT),
        "fast.engine",
        "fast.engine from 0.33 ms to 0.26 ms (roofline of the shipped networks, Orin Nano at 25 W)",
        "harmowam export CHECKPOINT --target tensorrt --precision int8-fp16 --out int8-fp16.bundle",
    ),
    "FP32 on a CPU": (
        run(FAST_ENGINE, deadline_misses=20),
        replace(SIM, quantization={"format": "fp32"}),
        "fast.engine",
        NOT_PREDICTED,
        "harmowam export CHECKPOINT --target onnxruntime --precision int8 --out int8.bundle",
    ),
    "a rate that the fast stages fit, simulated: 0.9 / 27.71 ms": (
        run(FAST_ENGINE, deadline_misses=20),
        SIM,
        "fast.engine",
        "the stages' 27.7 ms (p99) fit the period of 30.9 ms",
        "harmowam run --bundle out/so101.bundle --robot sim_so101 --fps 32.4",
    ),
    "a rate that the slow stages fit, of a robot file": (
        run(SLOW_ENGINE),
        ARM,
        "slow.world_model",
        "the stages' 130.5 ms (p50) fit the period of 147.1 ms",
        "slow_hz = 6.8  # under [rates] of my_arm/robot.toml",
    ),
    "real-time scheduling, as the doctor mends it": (
        run({"motor.wake": (0.2, 4.2)}, real_time={"sched_fifo": False}),
        replace(ARM, mends={"real-time scheduling": FIFO}),
        "motor.wake: motor ticks start 4.2 ms late at p99",
        "at most 4.2 ms of a motor tick at p99",
        FIFO,
    ),
    "late motor ticks with real-time scheduling": (
        run({"motor.wake": (0.2, 4.2)}),
        ARM,
        "motor.wake: motor ticks start 4.2 ms late at p99",
        NOT_PREDICTED,
        "harmowam doctor --robot my_arm/robot.toml",
    ),
    "a GPU whose clock floats": (
        run(FAST_ENGINE, deadline_misses=20, engine="tensorrt"),
        replace(ARM, mends={"GPU clock": "`sudo jetson_clocks`"}),
        "fast.engine",
        NOT_PREDICTED,
        "`sudo jetson_clocks`",
    ),
    "a power mode that is not the fastest": (
        run(SLOW_ENGINE),
        replace(ARM, mends={"power mode": "`sudo nvpmodel -m 2`"}),
        "slow.world_model",
        NOT_PREDICTED,
        "`sudo nvpmodel -m 2`",
    ),
    "cameras that are slower than the loop": (
        run(fast_hz=30.0, repeat_hz=20.0),
        ARM,
        "cameras: new frames for 30.0 of 50.0 fast steps a second",
        "up to 20.0 more new frames a second",
        "v4l2-ctl --list-formats-ext  # then, for such a mode, fps = 50 in my_arm/robot.toml",
    ),
    "simulated cameras that are slower than the loop": (
        run(fast_hz=30.0, repeat_hz=20.0),
        SIM,
        "cameras: new frames for 30.0 of 50.0 fast steps a second",
        "up to 20.0 more new frames a second",
        "harmowam profile --bundle out/so101.bundle --robot sim_so101 --fps 50",
    ),
    "pictures older than a period": (
        run({"observation.age": (22.0, 25.0)}),
        replace(ARM, camera_hz=30.0),
        "observation.age: 25.0 ms at p99 of a period of 20.0 ms",
        NOT_PREDICTED,
        "v4l2-ctl --list-formats-ext  # then, for such a mode, fps = 60 in my_arm/robot.toml",
    ),
    "pictures older than a period, simulated: a faster camera hands over as late": (
        run({"observation.age": (22.0, 24.5)}),
        SIM,
        "observation.age: 24.5 ms at p99 of a period of 20.0 ms",
        "pictures of 24.5 ms (p99) fit the period of 27.8 ms",
        "harmowam run --bundle out/so101.bundle --robot sim_so101 --fps 36",
    ),
    "misses of a loop whose stages fit: other programs": (
        run(deadline_misses=20, processors={"busy": 0.99, "stolen": 0.0}),
        SIM,
        "the processors: 99% busy",
        NOT_PREDICTED,
        "top -o %CPU  # stop what is not needed",
    ),
    "Priors that are too old beside stages that fit": (
        run(prior_age_ms={"p50": 300.0, "p99": 700.0}),
        SIM,
        (
            "waiting: Priors are 700 ms old at p99, and the predictive expert is off above 550 ms, while a slow step "
            "takes 8.4 ms of a period of 125.0 ms"
        ),
        NOT_PREDICTED,
        "harmowam doctor --robot sim_so101",
    ),
    "time that the host took": (
        run(deadline_misses=20, processors={"busy": 0.6, "stolen": 0.1}),
        SIM,
        "the host: 10.0% of the processors' time went to other machines",
        NOT_PREDICTED,
        "harmowam profile --bundle out/so101.bundle --robot sim_so101  # when it is quiet",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_binds_what_is_gained_and_what_to_type(name):
    report, facts, binds, gain, command = CASES[name]
    found = advice(report, facts)
    assert [(a.gain, a.command) for a in found if a.binds.startswith(binds)].count((gain, command)) == 1, found
    assert 1 <= len(found) <= MOST


def test_the_loop_that_drives_the_arm_comes_first_and_what_makes_it_faster_before_what_asks_less_of_it():
    report = run({**SLOW_ENGINE, **FAST_ENGINE}, deadline_misses=20, processors={"busy": 1.0, "stolen": 0.0})
    report["real_time"] = {"sched_fifo": False}
    facts = replace(
        ARM, quantization=TRT, note=UNBUILT, mends={"real-time scheduling": FIFO, "power mode": "`sudo nvpmodel -m 2`"}
    )
    typed = [a.command.partition(" --")[0] for a in advice(report, facts)]
    faster = ["top -o %CPU  # stop what is not needed", FIFO, "`sudo nvpmodel -m 2`", "harmowam build orin.bundle"]
    assert typed == [*faster, "fast_hz = 32.4  # under [rates] of my_arm/robot.toml"] and len(typed) == MOST


def test_a_shipped_robot_file_is_copied_and_then_changed():
    assert "slow_hz = 6.8  # under [rates] of a copy of runtime/robots/sim_so101.toml" in [
        a.command for a in advice(run(SLOW_ENGINE), SIM)
    ]


def test_no_rate_is_advised_that_is_not_below_the_present_one():
    """Stages that are late in one step of a hundred, and on time else, fit a higher rate by their medians."""
    found = advice(run({"slow.world_model": (20.0, 130.0)}), ARM)
    assert found and not [a for a in found if "slow_hz" in a.command]


def test_flow_steps_that_the_bundle_does_not_say_are_not_advised_on():
    for facts in (replace(SIM, steps={}), replace(SIM, steps=dict.fromkeys(STEPS, 1))):
        assert not [a for a in advice(run(SLOW_ENGINE), facts) if "distill" in a.command]


@pytest.mark.parametrize("how", [{"format": "fp16"}, {**TRT, "float": "float16"}])
def test_a_student_is_exported_as_its_teacher_was(how):
    found = [a.command for a in advice(run(SLOW_ENGINE, engine="tensorrt"), replace(ARM, quantization=how))]
    precision = {"fp16": "fp16"}.get(how["format"], "int8-fp16")
    assert [c for c in found if f"--target tensorrt --precision {precision} --out student.bundle" in c]


def test_real_time_scheduling_has_no_predicted_gain_for_a_loop_whose_motor_ticks_are_on_time():
    first = advice(run(FAST_ENGINE, deadline_misses=20, real_time={"sched_fifo": False}), ARM)[0]
    assert (first.gain, first.command) == (NOT_PREDICTED, "harmowam doctor --robot my_arm/robot.toml")


def test_a_policy_of_another_kind_gets_no_advice_about_our_networks():
    report = run(SLOW_ENGINE, kind="chunk", board=NANO)
    report["stages"] = {k: v for k, v in report["stages"].items() if k not in SLOW_ENGINE}
    report["stages"]["slow.chunk"] = {"p50_ms": 130.0, "p99_ms": 150.0, "budget_ms": 125.0}
    found = advice(report, replace(ARM, quantization={"format": "fp32"}, note=UNBUILT))
    assert next((a.gain, a.command.split()[:2]) for a in found) == (NOT_PREDICTED, ["harmowam", "build"])
    assert not [a for a in found if "distill" in a.command or "export" in a.command]


@pytest.mark.parametrize("name", CASES)
def test_every_command_of_ours_is_understood_by_the_command_line(name):
    for line in (part for a in advice(*CASES[name][:2]) for part in a.command.partition("  #")[0].split(" && ")):
        if line.startswith("harmowam"):
            verb, *words = shlex.split(line)[1:]
            command = main.get_command(click.Context(main), verb)
            assert command is not None
            command.make_parser(click.Context(command)).parse_args(words)


def test_quoted_predictions_are_those_of_the_plans_in_the_documentation():
    """An engine without INT8 layers takes in INT8 what it takes in the type of the rest."""
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    _, after = text.split("| engine | precision | kernels |")
    times: dict[str, dict[str, tuple[str, str]]] = {}
    for line in after.partition("\n\n")[0].splitlines()[2:]:
        engine, precision, *_, nano, _, agx, _ = (cell.strip(" *") for cell in line.strip("|").split("|"))
        times.setdefault(engine or list(times)[-1], {})[precision] = nano, agx
    names = {
        "fp32": ("FP32",),
        "fp16": ("FP16",),
        "int8": ("INT8 + FP32", "FP32"),
        "int8-fp16": ("INT8 + FP16", "FP16"),
    }
    for k, (mode, table) in enumerate(ROOFLINE.values()):
        for precision, wanted in names.items():
            said = [next(float(rows[n][k]) for n in wanted if n in rows) for rows in list(times.values())[:3]]
            assert table[precision] == pytest.approx(said, abs=0.0051), (mode, precision)
