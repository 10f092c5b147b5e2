"""What a bundle is: the facts that `harmowam bundle show` and `harmowam tasks` print."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from runtime.bundle import Bundle
from runtime.signing import MANIFEST, SignatureError, looked_at


def tasks(bundle: Bundle) -> list[dict[str, Any]]:
    """The instructions that `bundle` was exported with: `number` from 1 in alphabetical order, and `task`."""
    return [{"number": k, "task": text} for k, text in enumerate(sorted(bundle.manifest.tasks), 1)]


def signature(bundle: Bundle) -> dict[str, str]:
    """`state`: "none", "intact" (then `key`; whose it is, only a signers file says) or "broken" (then `why`)."""
    try:
        found = looked_at(bundle.path, (bundle.path / MANIFEST).read_bytes())
    except SignatureError as e:
        return {"state": "broken", "why": str(e)}
    return {"state": "none"} if found is None else {"state": "intact", "key": found.key}


def described(bundle: Bundle) -> dict[str, Any]:
    """Plain data for people and programs. Sizes are bytes, tensors have fixed shapes, joint limits are radians and
    degrees."""
    m = bundle.manifest
    return {
        "path": str(bundle.path),
        "name": m.name,
        "schema": m.schema,
        "digest": bundle.digest,
        "signature": signature(bundle),
        "kind": m.policy.kind,
        **({"does": m.policy.does} if m.policy.does else {}),
        "arm_family": m.arm_family,
        "licence": m.licence,
        "quantization": m.quantization,
        "engines": [
            {
                "name": name,
                "file": engine.file,
                "bytes": (bundle.path / engine.file).stat().st_size,
                "inputs": engine.inputs,
                "outputs": engine.outputs,
            }
            for name, engine in m.engines.items()
        ],
        "built": sorted(p.name for p in (bundle.path / "engines").glob("*") if p.is_dir()),
        "cameras": [{"name": k, "width": c["width"], "height": c["height"]} for k, c in m.cameras.items()],
        "joints": [
            {
                "name": j.name,
                "lower": j.lower,
                "upper": j.upper,
                "lower_deg": round(math.degrees(j.lower), 2),
                "upper_deg": round(math.degrees(j.upper), 2),
            }
            for j in m.joints
        ],
        "links": m.links,
        "chunk": {k: v for k, v in msgspec.to_builtins(m.chunk).items() if k not in ("mean", "std")},
        "tasks": tasks(bundle),
    }
