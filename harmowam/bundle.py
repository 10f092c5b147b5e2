"""`harmowam bundle`: what a bundle is, and who signed it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harmowam.options import errors, json_option, write_json


@click.group(short_help="What a bundle is, and who signed it.")
def bundle() -> None:
    """Look at bundles, sign and verify them."""


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _signature(found: dict[str, str]) -> str:
    says = {
        "none": "none",
        "intact": "by the key {key}; whose that is, `harmowam bundle verify` says",
        "broken": "BROKEN: {why}",
    }
    return says[found["state"]].format_map(found)


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
        ("signature", _signature(facts["signature"])),
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


@bundle.command(short_help="Sign a bundle with an OpenSSH key.")
@click.argument("bundle", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    required=True,
    help="A private key of OpenSSH, or a public one whose other half an agent or a security key holds.",
)
@json_option
@errors
def sign(bundle: Path, key: Path, json_path: Path | None) -> None:
    """Sign BUNDLE: `ssh-keygen -Y sign` over its manifest, which holds the hash of every file. The signature is the
    file `signature` in it."""
    from runtime import signing
    from runtime.bundle import Bundle

    opened = Bundle.load(bundle)
    signed = signing.sign(bundle, key)
    click.echo(f"signed {opened.manifest.name} ({opened.digest[:12]}) with {signed.key}")
    write_json(json_path, {"digest": opened.digest, "key": signed.key, "signature": str(bundle / signing.SIGNATURE)})


@bundle.command(short_help="Say who of a list of signers signed a bundle.")
@click.argument("bundle", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--signers",
    type=click.Path(path_type=Path),
    required=True,
    help="Who is trusted: a line `NAME PUBLIC_KEY` each, OpenSSH's form for allowed signers (ssh-keygen(1)).",
)
@json_option
@errors
def verify(bundle: Path, signers: Path, json_path: Path | None) -> None:
    """Check every file of BUNDLE, and that somebody of the signers file signed it."""
    from runtime import signing
    from runtime.bundle import Bundle

    opened = Bundle.load(bundle, signing.Trust(signers))
    signed = signing.verify(bundle, (bundle / signing.MANIFEST).read_bytes(), signers)
    click.echo(f"{opened.manifest.name} ({opened.digest[:12]}) is signed by {signed.principal} with {signed.key}")
    facts = {"digest": opened.digest, "principal": signed.principal, "key": signed.key, "signers": str(signers)}
    write_json(json_path, facts)
