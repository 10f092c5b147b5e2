"""`harmowam bundle`: what a bundle is, and who signed it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harmowam.options import UserError, errors, json_option, printable, refuse_unused, to_be_written, write_json

if TYPE_CHECKING:
    from runtime.bundle import Bundle
    from runtime.robot import Robot


PATH = click.Path(readable=False, path_type=Path)


@click.group(short_help="What a bundle is, who signed it, which one is current.")
def bundle() -> None:
    """Look at bundles, sign and verify them, and change the one that a robot runs."""


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
    rows += [(f"its {part}", text) for part, text in facts.get("does", {}).items()]
    for engine in facts["engines"]:
        takes = ", ".join(f"{k} {shape}" for k, shape in engine["inputs"].items())
        gives = ", ".join(engine["outputs"])
        rows.append(("engine", f"{engine['name']}, {_size(engine['bytes'])}: {takes} -> {gives}"))
    rows += [("built", folder) for folder in facts["built"]]
    rows += [("camera", f"{c['name']}, {c['width']} x {c['height']} pixels") for c in facts["cameras"]]
    rows += [
        ("joint", f"{j['name']:16}{j['lower_deg']:8.1f} to {j['upper_deg']:6.1f} degrees") for j in facts["joints"]
    ]
    rows += [(f"task {task['number']}", task["task"]) for task in facts["tasks"]]
    for name, text in rows:
        click.echo(f"{name:14}{printable(text)}")


@bundle.command(short_help="What a bundle is, and what it needs.")
@click.argument("bundle", metavar="BUNDLE", type=click.Path(readable=False, path_type=Path))
@click.option(
    "--plan", is_flag=True, help="The kernels that TensorRT's compiler made of its engines, in place of that."
)
@click.option(
    "--page", type=PATH, callback=to_be_written, help="With --plan: also write them to this HTML file, in order."
)
@click.option("--against", type=PATH, help="With --plan: another bundle, to say what differs.")
@json_option
@errors
def show(bundle: Path, plan: bool, page: Path | None, against: Path | None, json_path: Path | None) -> None:
    """What BUNDLE is: kind, arm family, quantisation, digest, engines with sizes and tensors, cameras, joints with
    limits, tasks. Every file is checked against its hash."""
    from runtime.bundle import Bundle
    from runtime.describe import described

    opened = Bundle.load(bundle)
    if plan:
        write_json(json_path, _plan(opened.manifest.name, bundle, page, against))
        return
    refuse_unused("without --plan", "page", "against")
    facts = described(opened)
    _print(facts)
    write_json(json_path, facts)


def _plan(name: str, bundle: Path, page: Path | None, against: Path | None) -> dict[str, Any]:
    """Print the plans of a bundle's engines, and what differs from those of `against`; returns the figures."""
    from common.files import write_whole
    from export.tensorrt import compare
    from export.tensorrt import page as pages
    from export.tensorrt.gate import lines
    from export.tensorrt.stored import read_plan

    found, other = read_plan(bundle), read_plan(against) if against else None
    facts = {**found.summary(), "roles": {k: compare.by_role(p) for k, p in found.plans.items()}}
    said = [*lines(facts), "", *compare.plan_lines(found.plans)]
    if other is not None:
        facts["against"] = compare.all_different(found.plans, other.plans)
        said += ["", f"beside {against}:", *compare.difference_lines(facts["against"])]
    click.echo("\n".join(printable(line) for line in said))
    if page is not None:
        write_whole(page, pages.page(name, found.plans, str(against or ""), other.plans if other else None))
        click.echo(f"page: {page}")
    return facts


@bundle.command(short_help="Sign a bundle with an OpenSSH key.")
@click.argument("bundle", metavar="BUNDLE", type=click.Path(readable=False, path_type=Path))
@click.option(
    "--key",
    type=click.Path(readable=False, path_type=Path),
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
@click.argument("bundle", metavar="BUNDLE", type=click.Path(readable=False, path_type=Path))
@click.option(
    "--signers",
    type=click.Path(readable=False, path_type=Path),
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


to_option = click.option(
    "--to",
    "folder",
    type=click.Path(readable=False, path_type=Path),
    help="Folder that holds the current bundle and the one before (default: 'bundles' of the robot file).",
)
where_option = click.option("--robot", help="A robot file: its 'bundles', its [trust], and what a bundle has to fit.")


def _place(robot: str | None, folder: Path | None) -> tuple[Robot | None, Path]:
    """The robot, where one is named, and the folder of its bundles; raises UserError without any."""
    from runtime.robot import load_robot

    described = None if robot is None else load_robot(robot)
    folder = folder or (described.bundles if described else None)
    if folder is None:
        raise UserError(
            'no folder is named to keep bundles in: name one with --to, or a robot file with `bundles = "FOLDER"` with '
            "--robot."
        )
    return described, folder


@bundle.command(short_help="Make a bundle the one that a robot runs.")
@click.argument("bundle", metavar="BUNDLE", type=click.Path(readable=False, path_type=Path))
@where_option
@to_option
@json_option
@errors
def promote(bundle: Path, robot: str | None, folder: Path | None, json_path: Path | None) -> None:
    """Copy BUNDLE into a folder on the robot and make it `current` there, in one step; keep the last good one. Then
    `harmowam run --bundle FOLDER/current`."""
    from runtime import promotion
    from runtime.bundle import Bundle

    described, to = _place(robot, folder)
    opened = Bundle.load(bundle, described.trust if described else None)
    if described is not None:
        opened.check_arm(described.arm, described.path)
    _tell(promotion.promote(opened, to), to, json_path)


@bundle.command(short_help="Go back to the bundle before.")
@where_option
@to_option
@json_option
@errors
def rollback(robot: str | None, folder: Path | None, json_path: Path | None) -> None:
    """Make the bundle before `current` again, and keep the other as the one before."""
    from runtime import promotion

    described, where = _place(robot, folder)
    _tell(promotion.rollback(where, described.trust if described else None), where, json_path)


def _tell(current: Bundle, folder: Path, json_path: Path | None) -> None:
    """Which bundle is current, and which the one before."""
    from runtime import promotion

    before = promotion.before(folder)
    click.echo(f"current: {current.manifest.name} ({current.digest[:12]}), {folder / 'current'}")
    click.echo(f"before: {before}" if before else "before: none")
    facts = {"current": str(current.path), "digest": current.digest, "previous": str(before) if before else None}
    write_json(json_path, facts)
