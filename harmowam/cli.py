"""The `harmowam` command. Each verb imports its room when it is asked for, so that `--help` stays quick."""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import click

import harmowam


class UserError(click.ClickException):
    """What the user can mend: one sentence and the next step, exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {self.message}", err=True)


MENDABLE = {
    "BundleError",
    "RobotError",
    "CameraError",
    "CalibrationError",
    "ArmError",
    "RunError",
    "PortError",
    "EngineError",
    "KernelError",
    "DataError",
    "CheckpointError",
    "ExportError",
    "SlotError",
    "SimulatorError",
    "FaultError",
    "EStopError",
    "LogError",
}
EXTRAS = {
    "mujoco": "sim",
    "jinja2": "sim",
    "matplotlib": "sim",
    "imageio_ffmpeg": "sim",
    "torch": "export",
    "onnx": "export",
    "pyarrow": "export",
    "av": "export",
}


def errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn the rooms' own exceptions into a sentence; anything else is a defect and keeps its traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except ModuleNotFoundError as e:
            if e.name not in EXTRAS:
                raise
            raise UserError(f"{e.name} is not installed: run `pip install 'harmowam-edge[{EXTRAS[e.name]}]'`.") from e
        except Exception as e:
            if type(e).__name__ in MENDABLE:
                raise UserError(str(e)) from e
            raise

    return wrapped


def write_json(path: Path | None, data: Any) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(data, indent=1, sort_keys=True) + "\n")
        partial.replace(path)


json_option = click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Also write the numbers to this file."
)
bundle_option = click.option(
    "--bundle", type=click.Path(path_type=Path), default=Path("out/so101.bundle"), show_default=True
)
robot_option = click.option("--robot", default="sim_so101", show_default=True, help="A shipped robot or a robot file.")


class Verbs(click.Group):
    """Commands, and the verb groups that live in modules of their own, imported when asked for."""

    groups: ClassVar = {
        "build": "harmowam.build",
        "bus": "harmowam.bus",
        "calibrate": "harmowam.calibrate",
        "doctor": "harmowam.doctor",
        "profile": "harmowam.profile",
        "replay": "harmowam.replay",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self.groups])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.groups:
            group: click.Command = getattr(importlib.import_module(self.groups[cmd_name]), cmd_name)
            return group
        return super().get_command(ctx, cmd_name)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(harmowam.__version__)
def main() -> None:
    """Take a HarmoWAM world-action model from the workstation to a Jetson Orin arm."""


def say(line: str) -> None:
    click.echo(f"  {line}", err=True)


@main.command()
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), default=Path("data/pick_place"), show_default=True
)
@click.option("--episodes", type=click.IntRange(min=1), default=400, show_default=True)
@click.option("--seed", default=0, show_default=True)
@json_option
@errors
def collect(out: Path, episodes: int, seed: int, json_path: Path | None) -> None:
    """Record demonstrations of the scripted expert in simulation."""
    from export.data import collect

    result = collect(out, episodes, seed)
    click.echo(f"kept {result['kept']} of {result['tried']} demonstrations in {out}")
    write_json(json_path, result)


@main.command()
@click.option("--dataset", type=click.Path(path_type=Path), default=Path("data/pick_place"), show_default=True)
@click.option(
    "--run",
    "run_folder",
    type=click.Path(path_type=Path),
    default=Path("runs/default"),
    show_default=True,
    help="State and log; goes on where it stopped.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/default/harmowam-so101.safetensors"), show_default=True
)
@click.option("--steps", default="", help="Steps of tokeniser,world,experts (default: as shipped).")
@click.option("--seed", default=0, show_default=True)
@json_option
@errors
def train(dataset: Path, run_folder: Path, out: Path, steps: str, seed: int, json_path: Path | None) -> None:
    """Train tokeniser, world model, experts and gate; a killed run is resumed by the same command."""
    import dataclasses

    from export.bundle import pick_samples, samples_path
    from export.data import load
    from export.train import STAGES, Plan, train

    plan = Plan(seed=seed)
    if steps:
        try:
            counts = [int(s) for s in steps.split(",")]
            changed: dict[str, Any] = {
                name: (n, *getattr(plan, name)[1:]) for name, n in zip(STAGES, counts, strict=True)
            }
        except ValueError as e:
            raise UserError(f"--steps {steps} is not three numbers: write for example --steps 1500,3500,3000.") from e
        plan = dataclasses.replace(plan, **changed)
    note = train(dataset, run_folder, out, plan)
    pick_samples(load(dataset), samples_path(out))
    click.echo(f"{out}: {note['train_minutes']} min of training on {note['episodes']} demonstrations")
    write_json(json_path, note)


@main.command()
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/so101.bundle"), show_default=True)
@click.option(
    "--samples", type=click.Path(path_type=Path), help="Calibration observations (default: beside the checkpoint)."
)
@click.option("--fp32", is_flag=True, help="Do not quantise (the reference).")
@click.option("--target", type=click.Choice(["onnxruntime", "tensorrt"]), default="onnxruntime", show_default=True)
@click.option("--force", is_flag=True, help="Write the bundle, marked as failed, although it misses a gate.")
@click.option("--recipe", type=click.Path(path_type=Path, dir_okay=False), help="A recipe that --search wrote.")
@click.option("--search", is_flag=True, help="Find a recipe: error and time of each group of layers, into OUT.search/.")
@click.option("--certify", is_flag=True, help="Play paired episodes, INT8 against FP32, with the bundle at OUT.")
@click.option("--episodes", type=click.IntRange(min=1), default=400, show_default=True, help="Of --certify.")
@json_option
@errors
def export(
    checkpoint: Path | None, out: Path, samples: Path | None, fp32: bool, target: str, force: bool, recipe: Path | None,
    search: bool, certify: bool, episodes: int, json_path: Path | None,
) -> None:  # fmt: skip
    """Turn a checkpoint into an INT8 bundle (default: the shipped checkpoint); refused when it strays from FP32."""
    from export.bundle import CHECKPOINT, export_bundle
    from export.quantise import load_recipe

    if search:
        from export.search import search as find

        folder = out.with_name(out.name + ".search")
        write_json(json_path, find(checkpoint or CHECKPOINT, folder, target, say=say))
        click.echo(f"recipe: {folder / 'recipe.json'} (use it with --recipe), measurements: {folder / 'search.json'}")
        return
    if certify:
        from export.certify import certify as play

        result = play(checkpoint or CHECKPOINT, out, episodes)
        click.echo(
            f"INT8 {result['int8_successes']}, FP32 {result['fp32_successes']} of {result['pairs']}: difference "
            f"{100 * result['difference']:+.1f} points, one-sided 95 % bound {100 * result['lower_bound']:+.1f}"
        )
        write_json(json_path, result)
        return
    own = load_recipe(target, recipe) if recipe else None
    report = export_bundle(checkpoint or CHECKPOINT, out, samples, not fp32, say, target, force, own)
    click.echo(f"{'engine':14}{'tensor':10}{'cosine':>9}{'rms':>10}{'MB':>7}")
    for name, engine in report["engines"].items():
        for tensor, row in engine["parity"].items():
            click.echo(f"{name:14}{tensor:10}{row['cosine']:9.4f}{row['rms']:10.5f}{engine['megabytes']:7.2f}")
    joints = report["joints_deg"]
    click.echo(
        f"joint goals apart: median {joints['p50']:.2f}, p99 {joints['p99']:.2f}, worst {joints['max']:.2f} degrees"
    )
    for name, engine in report["engines"].items():
        took = engine["time"]
        click.echo(
            f"{name:14}FP32 {took['fp32_ms']:7.2f} ms, shipped {took['ms']:7.2f} ms: {took['speedup']:.2f}x (CPU, 1 thread)"
        )
    small, large = (sum(e[k] for e in report["engines"].values()) for k in ("weight_bytes", "fp32_weight_bytes"))
    click.echo(f"weights: {small / 1e6:.2f} of {large / 1e6:.2f} MB ({small / large:.3f}); {report['seconds']} s")
    for line in report["missed"]:
        click.echo(f"GATE MISSED: {line}", err=True)
    from export.roofline import calibration_errors, predicted, table

    report["orin"] = predicted({name: out / "onnx" / f"{name}.onnx" for name in report["engines"]})
    off = max(abs(e) for e in calibration_errors().values())
    click.echo(f"\nTensorRT on a Jetson Orin, by a roofline that is up to {100 * off:.0f} % off on published figures:")
    click.echo("\n".join(table(report["orin"])))
    click.echo(f"bundle: {out}")
    write_json(json_path, report)


@main.command()
@bundle_option
@click.option("--episodes", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--policy", default="gated", show_default=True, help="gated, reactive, predictive; several with commas.")
@click.option("--task", help="One instruction (default: drawn from the seed).")
@click.option("--latency", multiple=True, metavar="STAGE=MS", help="slow=MS or fast=MS: virtual latency of an engine.")
@click.option("--camera-fps", type=click.FloatRange(min=1), default=25.0, show_default=True)
@click.option("--workers", type=click.IntRange(min=1))
@json_option
@errors
def evaluate(
    bundle: Path,
    episodes: int,
    seed: int,
    policy: str,
    task: str | None,
    latency: tuple[str, ...],
    camera_fps: float,
    workers: int | None,
    json_path: Path | None,
) -> None:
    """Success over seeded starts, in virtual time."""
    import dataclasses

    from runtime.bundle import Bundle
    from sim.evaluate import POLICIES, evaluate
    from sim.virtual_time import Schedule

    opened = Bundle.load(bundle)
    if task is not None:
        opened.task(task)
    policies = tuple(policy.split(","))
    unknown = [p for p in policies if p not in POLICIES]
    if unknown:
        raise UserError(f"policy '{unknown[0]}' does not exist: use {', '.join(POLICIES)}.")
    schedule = Schedule(camera_hz=camera_fps)
    for item in latency:
        stage, _, ms = item.partition("=")
        if stage not in ("slow", "fast") or not ms.replace(".", "", 1).isdigit():
            raise UserError(f"--latency {item} is not understood: write slow=MS or fast=MS.")
        schedule = dataclasses.replace(schedule, **{f"{stage}_ms": float(ms)})
    result = evaluate(bundle, episodes, seed, policies, schedule, task, workers)
    for cell in result["cells"]:
        low, high = cell["wilson95"]
        share = cell["successes"] / cell["episodes"]
        click.echo(
            f"{cell['policy']:12}{cell['successes']:4} of {cell['episodes']}  ({share:.0%}, 95 % {low:.0%} to {high:.0%})  "
            f"{cell['switches_per_episode']} switches an episode, median {cell['median_seconds']} s"
        )
    click.echo(f"{result['episodes_per_second']:.2f} episodes a second with {result['workers']} processes")
    write_json(json_path, result)


@main.command()
@bundle_option
@robot_option
@click.option("--task", help="Instruction; a simulated robot draws one from --seed.")
@click.option("--seconds", default=20.0, show_default=True)
@click.option("--port", help="Serial port (default: the robot file's).")
@click.option("--seed", default=0, show_default=True, help="Start of the simulated robot.")
@click.option("--policy", type=click.Choice(["gated", "reactive", "predictive"]), default="gated", show_default=True)
@click.option("--record", type=click.Path(path_type=Path), help="Folder for the recorded episode and its report.")
@click.option(
    "--fault", multiple=True, metavar="NAME@SECONDS", help="Inject a fault into the virtual bus (see bus campaign)."
)
@click.option(
    "--log", type=click.Path(path_type=Path), help="MCAP log for `harmowam replay`: every frame, input and command."
)
@json_option
@errors
def run(
    bundle: Path,
    robot: str,
    task: str | None,
    seconds: float,
    port: str | None,
    seed: int,
    policy: str,
    record: Path | None,
    fault: tuple[str, ...],
    log: Path | None,
    json_path: Path | None,
) -> None:
    """Drive an arm in real time. Ctrl-C lowers it to rest and releases the torque in a ramp."""
    from firmware_bridge.faults import parse
    from harmowam.live import live, process_began_s
    from harmowam.profile import print_timing
    from runtime.robot import load_robot

    if fault and not load_robot(robot).simulated:
        raise UserError("--fault acts on the virtual servo bus only: use --robot sim_so101.")
    for f in fault:
        parse(f)
    done = live(
        bundle,
        load_robot(robot),
        task,
        seconds,
        port=port,
        seed=seed,
        policy=policy,
        record=record,
        log=log,
        say=say,
        began_s=process_began_s(),
        faults=fault,
    )
    print_timing(done.report)
    if "success" in done.report:
        click.echo(f"task: {done.report['task']}: {'done' if done.report['success'] else 'not done'}")
    if record is not None:
        from runtime.report import write_report

        write_report(bundle, record, record, done.report)
        click.echo(f"recorded: {record}, report: {record / 'report.html'}")
    write_json(json_path, done.report)
    if done.interrupted:
        sys.exit(130)


@main.command()
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=Path("out/demo"), show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--seconds", default=20.0, show_default=True, help="At most; the run ends with success.")
@json_option
@errors
def demo(out: Path, seed: int, seconds: float, json_path: Path | None) -> None:
    """Export the shipped checkpoint to INT8, let it drive the simulated arm in real time, and report."""
    from harmowam.demo import demo
    from harmowam.profile import print_timing

    result = demo(out, seed, seconds, say)
    print_timing(result)
    click.echo(f"task: {result['task']}: {'done' if result['success'] else 'not done'}")
    click.echo(f"report: {out / 'report.html'}\nvideo:  {out / 'episode.mp4'}")
    write_json(json_path, result)


if __name__ == "__main__":
    main()
