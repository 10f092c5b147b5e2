"""`harmowam export`, `search-recipe` and `certify`: from a checkpoint to a bundle that was compared with it."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harmowam.export_policy import LEROBOT, OWN, UNITS, is_policy, order_of, print_policy
from harmowam.options import UserError, errors, json_option, refuse_unused, say, workers_option, write_json
from harmowam.progress import behind

if TYPE_CHECKING:
    from export.policies.bundle import Order

EXPORT_S, SEARCH_S = 55, 420  # on two idle cores (docs/export.md)
POLICY_S = 120  # a LeRobot ACT of full size
PATH = click.Path(readable=False, path_type=Path)
checkpoint_argument = click.argument("checkpoint", type=PATH, required=False)
samples_option = click.option("--samples", type=PATH, help="Calibration observations (default: beside the checkpoint).")
text_option = click.option("--text-encoder", type=PATH, help="The sentence encoder's folder, if trained with one.")
target_option = click.option(
    "--target",
    type=click.Choice(["onnxruntime", "tensorrt"]),
    default="onnxruntime",
    show_default=True,
    help="Inference engine that will run it.",
)


@click.command(short_help="Turn a checkpoint into a checked INT8 bundle.")
@checkpoint_argument
@click.option("--out", type=PATH, default=Path("out/so101.bundle"), show_default=True, help="Folder of the bundle.")
@target_option
@click.option(
    "--precision",
    type=click.Choice(["int8", "int8-fp16", "fp16", "fp32"]),
    help="Precision of the engines. Default: int8; for --target tensorrt int8-fp16, i.e. FP16 for layers that are not "
    "INT8. fp16 and int8-fp16 need --target tensorrt.",
)
@click.option(
    "--recipe",
    type=click.Path(readable=False, path_type=Path, dir_okay=False),
    help="A recipe that `search-recipe` wrote.",
)
@samples_option
@click.option("--dataset", type=PATH, help="A LeRobotDataset to draw 256 calibration observations from.")
@click.option(
    "--units",
    type=click.Choice(UNITS),
    help="Units of joint values in a LeRobot policy, or in a --dataset that lerobot recorded.",
)
@click.option("--robot", metavar="FILE", help="LeRobot policies: the robot that it drives, shipped or a file.")
@click.option(
    "--rate", type=click.FloatRange(1, 200), help="LeRobot policies: actions a second (default: the --dataset's)."
)
@click.option("--joints", type=PATH, help="LeRobot policies: the arm's calibration by lerobot-calibrate.")
@click.option("--task", "tasks", multiple=True, help="LeRobot policies: what it does, for `run --task`; repeatable.")
@click.option("--cameras", type=PATH, help="Folder with the calibrations of its cameras: front.json, wrist.json.")
@text_option
@click.option(
    "--keep", is_flag=True, help="Leave the bundle at --out where it was exported from the same checkpoint and recipe."
)
@click.option("--force", is_flag=True, help="Write the bundle even if it misses a gate, marked as failed.")
@json_option
@errors
def export(
    checkpoint: Path | None,
    out: Path,
    target: str,
    precision: str | None,
    recipe: Path | None,
    samples: Path | None,
    dataset: Path | None,
    units: str | None,
    robot: str | None,
    rate: float | None,
    joints: Path | None,
    tasks: tuple[str, ...],
    cameras: Path | None,
    text_encoder: Path | None,
    keep: bool,
    force: bool,
    json_path: Path | None,
) -> None:
    """Turn a checkpoint into an INT8 bundle (default: the shipped checkpoint); refused when its outputs differ too much
    from FP32.

    CHECKPOINT may be the folder of an ACT that LeRobot trained. Then say --robot, --rate and --units; with --dataset it
    becomes INT8, without one FP32 (or FP16).
    """
    from export.bundle import export_bundle

    usual = "int8-fp16" if target == "tensorrt" else "int8"
    if checkpoint is not None and is_policy(checkpoint):
        refuse_unused("for a LeRobot policy", *OWN)
        how = {"target": target, "precision": precision or (usual if dataset else "fp32")}
        order = order_of(checkpoint, robot, rate, units, joints, dataset, tasks, **how)
        report = export_policy(order, out, force)
        write_json(json_path, report)
        return
    refuse_unused("for a checkpoint of our own", *LEROBOT)
    if not dataset:
        refuse_unused("without --dataset", "units", "cameras")
    if samples and dataset:
        raise UserError("--samples and --dataset both say where observations come from: give one of them.")
    with drawn(dataset, units, cameras) as observations:
        plan = planned(
            checkpoint,
            target=target,
            precision=precision or usual,
            recipe=read_recipe(recipe, target),
            samples=observations or samples,
            text_encoder=text_encoder,
        )
        if keep and same(plan, out):
            click.echo(f"bundle: {out} is there, exported from the same checkpoint and recipe")
            report = json.loads((out / "reports" / "parity.json").read_text())
        else:
            with behind(out, EXPORT_S, say) as told:
                report = export_bundle(plan, out, told, force=force)
            print_report(report, out)
    write_json(json_path, report)


@click.command("search-recipe", short_help="Measure which layers are worth INT8.")
@checkpoint_argument
@click.option(
    "--out", type=PATH, default=Path("out/recipe"), show_default=True, help="Folder of recipe.json and search.json."
)
@target_option
@samples_option
@text_option
@json_option
@errors
def search_recipe(
    checkpoint: Path | None,
    out: Path,
    target: str,
    samples: Path | None,
    text_encoder: Path | None,
    json_path: Path | None,
) -> None:
    """Find a recipe by measuring error and time of each group of layers in INT8 (7 minutes)."""
    from export.search import search

    plan = planned(checkpoint, target=target, samples=samples, text_encoder=text_encoder)
    with behind(out, SEARCH_S, say) as told:
        found = search(plan, out, told)
    write_json(json_path, found)
    click.echo(f"recipe: {out / 'recipe.json'} (`harmowam export --recipe`), measurements: {out / 'search.json'}")


@click.command(short_help="Play paired episodes, a bundle against FP32.")
@click.argument("bundle", type=PATH, default=Path("out/so101.bundle"))
@click.option(
    "--against",
    type=PATH,
    help="The checkpoint that BUNDLE was exported from (default: the shipped one), or its FP32 bundle.",
)
@click.option("--episodes", type=click.IntRange(min=1), default=400, show_default=True, help="Number of pairs.")
@text_option
@workers_option
@json_option
@errors
def certify(
    bundle: Path,
    against: Path | None,
    episodes: int,
    text_encoder: Path | None,
    workers: int | None,
    json_path: Path | None,
) -> None:
    """Play the same starts with the engines of BUNDLE and with FP32 ones; refused when BUNDLE may cost more than 3
    points of success. What is for TensorRT is played by ONNX Runtime, and its engines are compiled first."""
    from export.certify import certify as play

    fp32 = against is not None and (against / "manifest.json").is_file()
    reference = against if fp32 and against is not None else planned(against, text_encoder=text_encoder)
    result = play(reference, bundle, episodes, workers=workers)
    click.echo(
        f"bundle {result['int8_successes']}, FP32 {result['fp32_successes']} of {result['pairs']}: difference "
        f"{100 * result['difference']:+.1f} points, one-sided 95 % bound {100 * result['lower_bound']:+.1f}"
    )
    if "tensorrt" in result:
        from export.tensorrt.gate import lines

        click.echo("\n".join(lines(result["tensorrt"])))
    write_json(json_path, result)


def export_policy(order: Order, out: Path, force: bool) -> dict[str, Any]:
    """Write the bundle of a LeRobot policy and print its report."""
    from export.policies import bundle

    with behind(out, POLICY_S, say) as told:
        report = bundle.export_policy(order, out, told, force=force)
    print_policy(report["source"], report)
    print_report(report, out)
    return report


def same(plan: Any, out: Path) -> bool:
    """Whether the bundle at `out` is what `plan` would make, with the report of its export."""
    from export.origin import made_from

    files = (plan.checkpoint, plan.observations, out / "reports" / "parity.json")
    return all(f.is_file() for f in files) and made_from(out, plan.origin())


def planned(checkpoint: Path | None, **how: Any) -> Any:
    """The plan of a checkpoint, by default of the shipped one."""
    from export.origin import CHECKPOINT
    from export.plan import Plan

    return Plan(checkpoint or CHECKPOINT, **how)


def read_recipe(path: Path | None, target: str) -> dict[str, Any] | None:
    from export.origin import load_recipe

    try:
        return load_recipe(target, path) if path else None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is no recipe ({e}): take one that `harmowam search-recipe` wrote.") from e


@contextlib.contextmanager
def drawn(dataset: Path | None, units: str | None, cameras: Path | None) -> Iterator[Path | None]:
    """256 observations of a dataset in a file that exists as long as the context; None without a dataset."""
    if dataset is None:
        yield None
        return
    from export.lerobot import read_cameras
    from export.observations import pick_samples
    from export.recordings import How
    from export.sources import Source, load_sources
    from sim.tasks import ARM

    with tempfile.TemporaryDirectory() as folder:
        how = How(units=units, calibration=read_cameras(cameras) if cameras else {})
        data = load_sources([Source(dataset, how)], Path(folder) / "pictures", arm=ARM)
        pick_samples(data, Path(folder) / "samples.npz")
        yield Path(folder) / "samples.npz"


def in_float(slow: Mapping[str, Mapping[str, float]]) -> str:
    """Which engines are shipped in float, and why. `slow`: their times (`export.gates.race`) in INT8."""
    times = ", ".join(f"{name} {t['ms']:.2f} ms, in float {t['fp32_ms']:.2f}" for name, t in slow.items())
    return f"shipped in float, for INT8 is not faster on this processor: {times}"


def print_report(report: dict[str, Any], out: Path) -> None:
    """Print parity, joint errors, times, weights, missed gates and predicted times on a Jetson Orin, which are added to
    `report`."""
    from export.gates import CELL_MM
    from export.tensorrt.gate import lines

    engines = report["engines"]
    click.echo(f"{'engine':14}{'tensor':10}{'cosine':>9}{'rms':>10}{'MB':>7}")
    for name, engine in engines.items():
        for tensor, row in engine["parity"].items():
            click.echo(f"{name:14}{tensor:10}{row['cosine']:9.4f}{row['rms']:10.5f}{engine['megabytes']:7.2f}")
    joints = report["joints_deg"]
    click.echo(
        f"joint goals apart: median {joints['p50']:.2f}, p99 {joints['p99']:.2f}, worst {joints['max']:.2f} degrees"
    )
    if "fast" in engines:
        heat = engines["fast"]["parity"]["heat"]
        click.echo(f"aims apart: p99 {CELL_MM * heat['aim_p99']:.1f} mm, {heat['astray']:.1%} mean another thing")
    if rounded := report.get("rounded_sums"):
        worst = min(row["cosine"] for rows in rounded.values() for row in rows.values())
        click.echo(f"worst cosine where sums are rounded to FP16, as TensorRT may do: {worst:.4f}")
    for name, engine in engines.items():
        took = engine["time"]
        click.echo(
            f"{name:14}FP32 {took['fp32_ms']:7.2f} ms, shipped {took['ms']:7.2f} ms: {took['speedup']:.2f}x (CPU, 1 "
            "thread)"
        )
    small, large = (sum(e[k] for e in engines.values()) for k in ("weight_bytes", "fp32_weight_bytes"))
    click.echo(f"weights: {small / 1e6:.2f} of {large / 1e6:.2f} MB ({small / large:.3f}); {report['seconds']} s")
    if slow := report.get("float"):
        click.echo(in_float(slow))
    if "tensorrt" in report:
        click.echo("\n".join(lines(report["tensorrt"])))
    for line in report["missed"]:
        click.echo(f"GATE MISSED: {line}", err=True)
    _print_orin(report, out, list(engines))
    click.echo(f"bundle: {out}")


def _print_orin(report: dict[str, Any], out: Path, engines: list[str]) -> None:
    """Print predicted times on a Jetson Orin, and add them to `report`: "orin", and "orin_inside" where plans have
    roundings of their own that TensorRT 10.3 has inside its INT8 convolutions."""
    from export.roofline import described, predicted, table
    from export.tensorrt.stored import read_plan
    from runtime.engines.plan import PLAN

    plans = read_plan(out).plans if (out / "reports" / PLAN).is_file() else {}
    files = {name: out / "onnx" / f"{name}.onnx" for name in engines}
    report["orin"] = predicted(files, plans)
    click.echo(f"\nTensorRT on a Jetson Orin, {described(plans)}:")
    click.echo("\n".join(table(report["orin"])))
    if (inside := predicted(files, plans, inside=True)) != report["orin"]:
        report["orin_inside"] = inside
        click.echo("\nthe same with rounding inside INT8 convolutions, as TensorRT 10.3 (JetPack 6) computes them:")
        click.echo("\n".join(table(report["orin_inside"])))
