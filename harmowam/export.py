"""`harmowam export`: a checkpoint to a bundle that was checked against it; the search for a recipe, and the certificate."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from harmowam.options import UserError, errors, json_option, refuse_unused, say, workers_option, write_json

PATH = click.Path(path_type=Path)


@click.command(short_help="Turn a checkpoint into a checked INT8 bundle.")
@click.argument("checkpoint", type=PATH, required=False)
@click.option("--out", type=PATH, default=Path("out/so101.bundle"), show_default=True, help="Folder of the bundle.")
@click.option("--samples", type=PATH, help="Calibration observations (default: beside the checkpoint).")
@click.option("--dataset", type=PATH, help="Or a LeRobotDataset of yours to draw 256 of them from.")
@click.option("--units", type=click.Choice(["degrees", "rad"]), help="Of a --dataset that lerobot recorded.")
@click.option("--cameras", type=PATH, help="Calibrations of its cameras: front.json, wrist.json.")
@click.option("--fp32", is_flag=True, help="Do not quantise (the reference).")
@click.option(
    "--world-steps", type=click.IntRange(1, 100), help="Euler steps of the world model (default: the checkpoint's)."
)
@click.option("--action-steps", type=click.IntRange(1, 100), help="Of the predictive expert, likewise.")
@click.option("--text-encoder", type=PATH, help="The sentence encoder's folder, if trained with one.")
@click.option(
    "--target",
    type=click.Choice(["onnxruntime", "tensorrt"]),
    default="onnxruntime",
    show_default=True,
    help="Who runs it.",
)
@click.option("--half", is_flag=True, help="FP16 for what stays float; with --target tensorrt.")
@click.option("--force", is_flag=True, help="Write the bundle, marked as failed, although it misses a gate.")
@click.option("--recipe", type=click.Path(path_type=Path, dir_okay=False), help="A recipe that --search wrote.")
@click.option("--search", is_flag=True, help="Find a recipe: error and time of each group of layers, into OUT.search/.")
@click.option("--certify", is_flag=True, help="Play paired episodes, INT8 against FP32, with the bundle at OUT.")
@click.option("--episodes", type=click.IntRange(min=1), default=400, show_default=True, help="Of --certify.")
@workers_option
@json_option
@errors
def export(
    checkpoint: Path | None,
    out: Path,
    samples: Path | None,
    dataset: Path | None,
    units: str | None,
    cameras: Path | None,
    fp32: bool,
    world_steps: int | None,
    action_steps: int | None,
    text_encoder: Path | None,
    target: str,
    half: bool,
    force: bool,
    recipe: Path | None,
    search: bool,
    certify: bool,
    episodes: int,
    workers: int | None,
    json_path: Path | None,
) -> None:
    """Turn a checkpoint into an INT8 bundle (default: the shipped checkpoint); refused when it strays from FP32."""
    from export.bundle import CHECKPOINT, export_bundle, pick_samples
    from export.quantise import load_recipe

    if certify:
        refuse_unused("with --certify", "samples", "dataset", "fp32", "target", "half", "force", "recipe", "search")
    else:
        refuse_unused("without --certify", "episodes", "workers")
    if search:
        refuse_unused("with --search", "fp32", "half", "world_steps", "action_steps", "force", "recipe")
    if half and target != "tensorrt":
        raise UserError(
            "--half is for TensorRT, ONNX Runtime on a CPU computes in FP32: add --target tensorrt, or leave it out."
        )
    if not dataset:
        refuse_unused("without --dataset", "units", "cameras")
    if samples and dataset:
        raise UserError("--samples and --dataset both say where observations come from: give one of them.")
    checkpoint = checkpoint or CHECKPOINT
    how: dict[str, Any] = {"world_steps": world_steps, "action_steps": action_steps, "text_encoder": text_encoder}
    try:
        own = load_recipe(target, recipe) if recipe else None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{recipe} is no recipe ({e}): take one that `harmowam export --search` wrote.") from e
    if certify:
        from export.certify import certify as play

        result = play(checkpoint, out, episodes, workers=workers, **how)
        click.echo(
            f"INT8 {result['int8_successes']}, FP32 {result['fp32_successes']} of {result['pairs']}: difference "
            f"{100 * result['difference']:+.1f} points, one-sided 95 % bound {100 * result['lower_bound']:+.1f}"
        )
        write_json(json_path, result)
        return
    with tempfile.TemporaryDirectory() as folder:
        if dataset:
            from export.data import load_demonstrations
            from export.lerobot import read_cameras

            samples = Path(folder) / "samples.npz"
            known = read_cameras(cameras) if cameras else None
            pick_samples(
                load_demonstrations(dataset, Path(folder) / "pictures", units=units, calibration=known), samples
            )
        if search:
            from export.search import search as find

            into = out.with_name(out.name + ".search")
            found = find(checkpoint, into, target, say=say, samples=samples, text_encoder=text_encoder)
            write_json(json_path, found)
            click.echo(f"recipe: {into / 'recipe.json'} (use it with --recipe), measurements: {into / 'search.json'}")
            return
        report = export_bundle(
            checkpoint,
            out,
            samples,
            int8=not fp32,
            say=say,
            target=target,
            force=force,
            recipe=own,
            half=half,
            **how,
        )
    print_report(report, out)
    write_json(json_path, report)


def print_report(report: dict[str, Any], out: Path) -> None:
    """Parity, joints, times, weights, missed gates; what a Jetson Orin would need, which goes into `report`, too."""
    from export.roofline import calibration_errors, predicted, table

    engines = report["engines"]
    click.echo(f"{'engine':14}{'tensor':10}{'cosine':>9}{'rms':>10}{'MB':>7}")
    for name, engine in engines.items():
        for tensor, row in engine["parity"].items():
            click.echo(f"{name:14}{tensor:10}{row['cosine']:9.4f}{row['rms']:10.5f}{engine['megabytes']:7.2f}")
    joints = report["joints_deg"]
    click.echo(
        f"joint goals apart: median {joints['p50']:.2f}, p99 {joints['p99']:.2f}, worst {joints['max']:.2f} degrees"
    )
    heat = engines["fast"]["parity"]["heat"]
    click.echo(f"aims apart: p99 {heat['aim_p99']:.2f} cells of 7 mm, {heat['astray']:.1%} mean another thing")
    for name, engine in engines.items():
        took = engine["time"]
        click.echo(
            f"{name:14}FP32 {took['fp32_ms']:7.2f} ms, shipped {took['ms']:7.2f} ms: {took['speedup']:.2f}x (CPU, 1 thread)"
        )
    small, large = (sum(e[k] for e in engines.values()) for k in ("weight_bytes", "fp32_weight_bytes"))
    click.echo(f"weights: {small / 1e6:.2f} of {large / 1e6:.2f} MB ({small / large:.3f}); {report['seconds']} s")
    for line in report["missed"]:
        click.echo(f"GATE MISSED: {line}", err=True)
    report["orin"] = predicted({name: out / "onnx" / f"{name}.onnx" for name in engines})
    off = max(abs(e) for e in calibration_errors().values())
    click.echo(f"\nTensorRT on a Jetson Orin, by a roofline that is up to {100 * off:.0f} % off on published figures:")
    click.echo("\n".join(table(report["orin"])))
    click.echo(f"bundle: {out}")
