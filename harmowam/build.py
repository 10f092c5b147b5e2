"""`harmowam build`: TensorRT engines for the machine that it runs on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from harmowam.options import errors, json_option, robot_option, say, write_json


@click.command(short_help="Build TensorRT engines from a bundle on this machine.")
@click.argument("bundle", type=click.Path(readable=False, path_type=Path), default=Path("out/so101.bundle"))
@robot_option
@click.option("--memory-mb", type=click.IntRange(min=64), default=1024, show_default=True, help="Builder's workspace.")
@click.option("--builds", type=click.IntRange(1, 10), default=2, show_default=True, help="Keep the fastest of so many.")
@click.option(
    "--version-compatible",
    is_flag=True,
    help="Engines that newer TensorRTs of the same major version load too; slower.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be built; needs neither GPU nor TensorRT.")
@json_option
@errors
def build(
    bundle: Path,
    robot: str,
    memory_mb: int,
    builds: int,
    version_compatible: bool,
    dry_run: bool,
    json_path: Path | None,
) -> None:
    """Build TensorRT engines from BUNDLE on this machine, compare them with ONNX Runtime, keep the fastest;
    say what differs from the plan that was exported with BUNDLE.
    The robot file says whose bundles are trusted ([trust])."""
    from runtime import build as engine_build
    from runtime.bundle import Bundle
    from runtime.engines.built import Board, this_board
    from runtime.engines.inspector import difference_lines
    from runtime.engines.onnx import EngineError
    from runtime.robot import load_robot

    opened = Bundle.load(bundle, load_robot(robot).trust)
    options = engine_build.Options(memory_mb, builds, version_compatible)
    engine_build.refuse_unfit(opened)
    if dry_run:
        try:
            board: Board | None = this_board()
        except EngineError as e:
            board = None
            click.echo(f"(not this machine: {e})", err=True)
        rows = engine_build.plan(opened, options, board)
        for row in rows:
            how = f"GPU, {row['stream']}; best of {builds}; workspace {memory_mb} MB"
            click.echo(f"{row['onnx']} -> {row['file']}  ({how})")
        write_json(json_path, {"board": dataclasses.asdict(board) if board else None, "plan": rows})
        return
    listing = engine_build.build(opened, options, say)
    for name, row in listing["engines"].items():
        click.echo(f"{name:14}{row['median_ms']:8.3f} ms   lowest cosine {min(row['cosine'].values()):.4f}")
        for line in difference_lines(row["plan"]):
            click.echo(f"  {line}")
    write_json(json_path, listing)
