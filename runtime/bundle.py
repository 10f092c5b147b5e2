"""The bundle: the only thing that goes to the robot. Loading checks all of it; saving is atomic and repeatable.

Layout: `manifest.json`, `onnx/*.onnx`, `samples.npz` (all hashed), `reports/` (measurements) and `signature`
(`runtime.signing`), both outside the hashes.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import logging
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from common.errors import Mendable
from common.files import sync
from common.schema import Malformed, parse_json, read_bounded, shaped, shown
from firmware_bridge.arms import FAMILIES, Family
from firmware_bridge.motion.config import ArmConfig
from runtime.engines.onnx import Engine, EngineError, OrtEngine
from runtime.manifest import SCHEMA, EngineFiles, Manifest
from runtime.signing import MANIFEST, Trust, verify

MOST_BYTES = 4 * 1024 * 1024  # of a manifest
LINKS_APART = 0.005  # m: success falls with 10 mm, hardly with 5 (docs/export.md)
# Of the narrower of two ranges of one joint. Stops differ by less from arm to arm; a joint that is measured the wrong
# way round, or a quarter of a turn off, leaves less.
LEAST_SHARE = 0.5
LEAST_RAD = 0.1  # a joint that turns by less stands still; a joint calibration gives every joint 0.4 and more


class BundleError(Mendable):
    """A bundle that must not be used; one sentence and the next step."""


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk. `digest`: the SHA-256 of its manifest's meaning, and so of every file's hash. `trust`:
    by what it was verified beyond its hashes, None where nothing was asked for."""

    path: Path
    manifest: Manifest
    digest: str
    trust: Trust | None = None

    @classmethod
    def load(cls, path: Path, trust: Trust | None = None) -> Bundle:
        """Raises BundleError when `path` is absent, damaged, incomplete or from a newer schema, and SignatureError when
        `trust` does not cover it. A link (`current` of `runtime.promotion`) is followed once: the bundle stays the one
        that it was when it was opened."""
        path = Path(path)
        try:
            path = path.resolve() if path.is_symlink() else path
            there = (path / MANIFEST).is_file()
        except OSError as e:  # a name that is too long, a folder that may not be entered
            raise BundleError(f"{shown(str(path))} cannot be read ({e.strerror}): name another bundle.") from e
        if not there:
            if not path.exists() and (_old(path) / MANIFEST).is_file():
                raise BundleError(
                    f"{path} is missing, for its replacement was interrupted: put the one before back with "
                    f"`mv {shlex.quote(str(_old(path)))} {shlex.quote(str(path))}`."
                )
            raise BundleError(
                f"{path} is not a bundle (no manifest.json): name another bundle, or make out/so101.bundle with "
                "`./build.sh bundle`."
            )
        again = "copy it again from the workstation, or export it again."
        manifest, digest = _read(path, again, trust)
        for name, wanted in manifest.files.items():
            file = path / name
            if not file.is_file():
                raise BundleError(f"{path} is incomplete, {name} is missing: {again}")
            if sha256(file) != wanted:
                raise BundleError(f"{path} is damaged, {name} does not match its hash: {again}")
        unhashed = [e.file for e in manifest.engines.values() if e.file not in manifest.files]
        if unhashed:
            raise BundleError(f"{path}/manifest.json names {unhashed[0]} without a hash: {again}")
        if manifest.quantization.get("failed"):
            logging.getLogger("harmowam").warning(
                "WARNING: %s FAILED the gates of its export and was written with --force: keep it off a real arm "
                "(what failed is in reports/parity.json under 'missed').",
                path,
            )
        return cls(path, manifest, digest, trust)

    @property
    def family(self) -> Family:
        """The arm family, with the link lengths, that the bundle was made for."""
        return FAMILIES[self.manifest.arm_family].with_links(self.manifest.links)

    def check_arm(self, arm: ArmConfig, robot: Path) -> ArmConfig:
        """The robot of that file, whose `arm` this is, within the tighter of its own joint limits and the bundle's.

        Raises BundleError when it is of another family than the bundle was made for, when links differ by more than
        LINKS_APART, when hardly anything is left of a joint's range, or not the rest pose.
        """
        if arm.family != self.manifest.arm_family:
            raise BundleError(
                f"{self.path} was made for arms of the family '{self.manifest.arm_family}', {robot} is one of "
                f"'{arm.family}': name another bundle with --bundle, or another robot with --robot."
            )
        own = FAMILIES[arm.family]
        if (apart := _tools_apart(self.family, own)) > LINKS_APART:
            name = max(own.lengths, key=lambda k: abs(self.manifest.links[k] - own.lengths[k]))
            raise BundleError(
                f"{self.path} was made for an arm whose tool may be {1000 * apart:.0f} mm from where this robot's is "
                f"('links.{name}' is {self.manifest.links[name]:.4f} m there, {own.lengths[name]:.4f} m here): export "
                "it again with this version, or name another with --bundle."
            )
        ends = [self._joint(k, arm, robot) for k in range(len(arm.joints))]
        return dataclasses.replace(arm, lower=tuple(a for a, _ in ends), upper=tuple(b for _, b in ends))

    def _joint(self, k: int, arm: ArmConfig, robot: Path) -> tuple[float, float]:
        """The limits (rad) of joint number `k` that bundle and robot both keep. Raises BundleError."""
        j, low, high = self.manifest.joints[k], arm.lower[k], arm.upper[k]
        lower, upper = max(j.lower, low), min(j.upper, high)
        if upper - lower < max(LEAST_RAD, LEAST_SHARE * min(j.upper - j.lower, high - low)):
            raise BundleError(
                f"{self.path} moves {j.name} from {j.lower:.2f} to {j.upper:.2f} rad, {robot} from {low:.2f} to "
                f"{high:.2f}, and they have too little in common: correct the limits there, calibrate the joint "
                "again, or name another bundle with --bundle."
            )
        if not lower <= arm.rest[k] <= upper:
            raise BundleError(
                f"{robot} puts {j.name} at {arm.rest[k]:.2f} rad to rest, and {self.path} moves it from {j.lower:.2f} "
                f"to {j.upper:.2f} only: correct 'rest' there, or name another bundle with --bundle."
            )
        return lower, upper

    def task(self, text: str) -> np.ndarray:
        """Embedding float32[E] of an instruction; raises BundleError for a text the bundle was not exported with."""
        if text not in self.manifest.tasks:
            near = difflib.get_close_matches(text, self.manifest.tasks, n=1, cutoff=0.0)
            known = sorted(self.manifest.tasks, key=lambda t: t not in near)
            raise BundleError(
                f"this bundle does not know the task '{text}': use one of " + ", ".join(f"'{t}'" for t in known) + "."
            )
        return np.array(self.manifest.tasks[text], np.float32)

    def engine(self, name: str, threads: int = 1, backend: str = "cpu") -> Engine:
        """Load an engine; raises BundleError when it is absent or does not have the manifest's tensors.

        `backend`: "cpu" or "cuda" (ONNX Runtime), or "tensorrt" (engines of `harmowam build`). What is asked for runs,
        or an error says why not: nothing falls back. Which one to ask for: `runtime.compute`.
        """
        spec = self.manifest.engines.get(name)
        if spec is None:
            raise BundleError(f"{self.path} holds no engine '{name}': export the bundle again.")
        try:
            engine = self._open(name, spec, threads, backend)
        except EngineError as e:
            raise BundleError(f"{self.path}: {e}") from e
        # TensorRT promises no order of an engine's tensors.
        found = {k: list(v.shape) for k, v in engine.inputs.items()}
        if found != spec.inputs or sorted(engine.outputs) != sorted(spec.outputs):
            raise BundleError(
                f"{self.path}/{spec.file} does not have the tensors that its manifest names: export the bundle again."
            )
        return engine

    def _open(self, name: str, spec: EngineFiles, threads: int, backend: str) -> Engine:
        onnx = self.manifest.files[spec.file]
        if backend == "tensorrt":
            from runtime.engines.built import URGENT, built_engine, this_board
            from runtime.engines.tensorrt import TensorRTEngine

            path, compatible, digest = built_engine(self.path, name, onnx, this_board(), self.trust)
            return TensorRTEngine(path, urgent=name in URGENT, version_compatible=compatible, digest=digest)
        providers = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
        if backend not in providers:
            raise EngineError(f"the engine '{backend}' is unknown: use cpu, cuda or tensorrt.")
        return OrtEngine(self.path / spec.file, threads, providers[backend], digest=onnx)


def flow_steps(bundle: Path) -> dict[str, int]:
    """The numbers of Euler steps of the bundle's engines, "world" and "action", from its export report; empty where
    there is no report that says it."""
    try:
        steps = parse_json(read_bounded(bundle / "reports" / "parity.json", MOST_BYTES))["steps"]
        return {part: n for part, n in steps.items() if type(n) is int and n > 0}
    except (OSError, Malformed, KeyError, TypeError, AttributeError):
        return {}


def _tools_apart(a: Family, b: Family) -> float:
    """How far apart, in m, the tools of two arms of one family can be at the same joint angles: the sum of what their
    links differ by, for some pose points all of that the same way."""
    ends = [(np.array([*(link.at for link in f.chain), f.tcp])) for f in (a, b)]
    return float(np.linalg.norm(ends[0] - ends[1], axis=1).sum())


def _read(path: Path, again: str, trust: Trust | None) -> tuple[Manifest, str]:
    """The manifest of the bundle `path`, and its own hash. Raises BundleError: damaged, of another schema, for another
    arm; SignatureError: not signed as `trust` asks for, which is known before anything of it is read."""
    file = path / MANIFEST
    try:
        data = read_bounded(file, MOST_BYTES)
        if trust is not None:
            verify(path, data, trust.signers)
        raw = _upgraded(parse_json(data))
        schema, family = raw["schema"], raw["arm_family"]
    except (OSError, TypeError) as e:
        raise BundleError(f"{file} is damaged ({e.strerror if isinstance(e, OSError) else 'no table'}): {again}") from e
    except KeyError as e:
        raise BundleError(f"{file} is damaged ({e} is missing): {again}") from e
    except Malformed as e:
        raise BundleError(f"{file} is damaged ({e}): {again}") from e
    if schema != SCHEMA:
        newer = isinstance(schema, int) and schema > SCHEMA
        mend = "upgrade harmowam on this machine." if newer else "export it again with this version."
        raise BundleError(f"{path} has bundle schema {shown(schema)}, this version reads {SCHEMA}: {mend}")
    if isinstance(family, str) and family not in FAMILIES:
        raise BundleError(
            f"{path} is for arms of the family '{shown(family)}', this version drives {', '.join(FAMILIES)}: "
            "name another bundle, or upgrade harmowam on this machine."
        )
    digest = raw.pop("digest", None)
    try:
        manifest = shaped(raw, Manifest)
    except Malformed as e:
        raise BundleError(f"{file} is damaged ({e}): {again}") from e
    if digest != digest_of(raw):
        raise BundleError(f"{file} is damaged (it does not match its own hash): {again}")
    return manifest, digest


def digest_of(manifest: dict[str, Any]) -> str:
    """SHA-256 of a manifest's meaning: of its JSON with sorted keys and no spaces, without `digest`."""
    rest = {k: v for k, v in manifest.items() if k != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(manifest: dict[str, Any]) -> str:
    """The text of `manifest.json`, with the manifest's own hash."""
    return json.dumps({**manifest, "digest": digest_of(manifest)}, indent=1, sort_keys=True) + "\n"


def _upgraded(raw: Any) -> Any:
    """A manifest of schema 2 in the form of schema 3; anything else as it is. Schema 2 has no hash of its own, so a
    manifest that calls itself one and has a hash is damaged."""
    if not isinstance(raw, dict) or raw.get("schema") != 2 or "digest" in raw:
        return raw
    now = {k: v for k, v in raw.items() if k not in ("rates", "proprio")} | {"schema": SCHEMA}
    return now | {"digest": digest_of(now)}


def _old(out: Path) -> Path:
    return out.with_name(out.name + ".old")


def check_replaceable(out: Path) -> None:
    """Raise BundleError unless `out` is free, an empty folder or a bundle: `save_bundle` removes what is there."""
    if out.exists() and not (out / MANIFEST).is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise BundleError(f"{out} is there and is no bundle: name another --out, for it would be replaced.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise BundleError(f"{out} cannot be made ({e.strerror}): name another --out.") from e


def save_bundle(out: Path, manifest: Manifest, files: dict[str, Path], reports: dict[str, Path] | None = None) -> None:
    """Write a bundle beside `out`, then put it in its place; equal inputs give equal bytes (reports excepted).

    Killed between two renames it leaves no bundle at `out`: the one before is at `out.old` then, and `Bundle.load` says
    how to put it back. Raises BundleError when something else is at `out`.
    """
    out = Path(out)
    check_replaceable(out)
    plain = msgspec.to_builtins(manifest)
    try:
        shaped(plain, Manifest)
    except Malformed as e:
        raise BundleError(
            f"no arm could be driven by this bundle ({e}), it is not written: train the policy again."
        ) from e
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for name, source in {**files, **{f"reports/{k}": v for k, v in (reports or {}).items()}}.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, partial / name)
    plain = {**plain, "files": {name: sha256(partial / name) for name in sorted(files)}}
    (partial / MANIFEST).write_text(sealed(plain))
    for file in partial.rglob("*"):
        sync(file)
    old = _old(out)
    if out.exists():  # else the bundle that an interrupted write left at `old` is the only one
        shutil.rmtree(old, ignore_errors=True)
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
