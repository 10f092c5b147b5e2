"""`harmowam bundle`: what a bundle is, and who signed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harmowam.options import errors, json_option, write_json


@click.group(short_help="What a bundle is.")
def bundle() -> None:
    """Look at bundles."""


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _print(facts: dict[str, Any]) -> None:
    """The facts of `runtime.describe.described` as a page of text."""
    quantization = facts["quantization"]
    target = f" for {quantization['target']}" if "target" in quantization else ""
    failed = ", FAILED the gates of its export" if quantization.get("failed") else ""
    chunk = facts["chunk"]
    rows = [
        ("bundle", f"{facts['name']} ({facts['path']})"),
        ("kind", f"{facts['kind']}, plans of {chunk['steps']} steps, {chunk['dt_ms']} ms apart"),
        ("arm family", facts["arm_family"]),
        ("quantisation", f"{quantization.get('format', 'not said')}{target}{failed}"),
        ("licence", facts["licence"]),
        ("digest", facts["digest"]),
    ]
    for name, text in rows:
        click.echo(f"{name:14}{text}")
    for engine in facts["engines"]:
        takes = ", ".join(f"{k} {shape}" for k, shape in engine["inputs"].items())
        click.echo(
            f"engine        {engine['name']}, {_size(engine['bytes'])}: {takes} -> {', '.join(engine['outputs'])}"
        )
    for folder in facts["built"]:
        click.echo(f"built         {folder}")
    for camera in facts["cameras"]:
        click.echo(f"camera        {camera['name']}, {camera['width']} x {camera['height']} pixels")
    for joint in facts["joints"]:
        click.echo(f"joint         {joint['name']:16}{joint['lower_deg']:8.1f} to {joint['upper_deg']:6.1f} degrees")
    for task in facts["tasks"]:
        click.echo(f"task {task['number']:<9}{task['task']}")


@bundle.command(short_help="What a bundle is, and what it needs.")
@click.argument("bundle", metavar="BUNDLE", type=click.Path(path_type=Path))
@json_option
@errors
def show(bundle: Path, json_path: Path | None) -> None:
    """What BUNDLE is: kind, arm family, quantisation, digest, engines with sizes and tensors, cameras, joints with
    limits, tasks. Every file is checked against its hash."""
    from runtime.bundle import Bundle
    from runtime.describe import described

    facts = described(Bundle.load(bundle))
    _print(facts)
    write_json(json_path, facts)
