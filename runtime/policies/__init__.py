"""From observations to commands: one module a kind of policy. `open_policy` makes the steps of any bundle.

To add a kind: one file in this folder whose `KIND` says what it is (`runtime.policies.protocol.Kind`). A bundle's
manifest names the kind by the file's name: `"policy": {"kind": "chunk"}`.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Mapping

from calibration.camera import Camera
from runtime.bundle import Bundle
from runtime.policies.protocol import Ends, FastStep, Kind, NoTrace, Opening, Policy, PolicyError, SlowStep, Trace

__all__ = ["FastStep", "Kind", "Policy", "PolicyError", "SlowStep", "kind_of", "open_policy"]


def _modules() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def _kind(name: str) -> Kind | None:
    """The kind of that name; None where no file of this folder is one. A name comes from a bundle: nothing else is
    imported. Raises PolicyError for a file that cannot be loaded."""
    if name not in _modules():
        return None
    try:
        found = getattr(importlib.import_module(f"{__name__}.{name}"), "KIND", None)
    except Exception as e:
        raise PolicyError(f"runtime/policies/{name}.py cannot be loaded ({type(e).__name__}: {e}): correct it.") from e
    return found if isinstance(found, Kind) else None


def _known() -> list[str]:
    """The kinds that this version drives; files that cannot be loaded are left out."""
    known = []
    for name in _modules():
        with contextlib.suppress(PolicyError):
            if _kind(name):
                known.append(name)
    return known


def kind_of(bundle: Bundle) -> Kind:
    """What `bundle` says that it is; raises PolicyError for a kind that this version has not, or a manifest that lacks
    what it needs."""
    name = bundle.manifest.policy.kind
    kind = _kind(name)
    if kind is None:
        raise PolicyError(
            f"{bundle.path} holds a policy of kind '{name}', this version drives {', '.join(_known())}: name another "
            "with --bundle, or upgrade harmowam on this machine."
        )
    lacks = [e for e in kind.engines if e not in bundle.manifest.engines]
    wrong = f"engine '{lacks[0]}'" if lacks else kind.wrong(bundle.manifest)
    if wrong:
        raise PolicyError(
            f"{bundle.path} lacks what a policy of kind '{name}' needs ({wrong}): export the bundle again."
        )
    return kind


def mode_of(bundle: Bundle, mode: str | None) -> str:
    """The mode that `bundle` drives in when asked for `mode` (None: its usual one); raises PolicyError for one that it
    has not."""
    kind = kind_of(bundle)
    if mode is None:
        return kind.modes[0]
    if mode not in kind.modes:
        raise PolicyError(
            f"a policy of kind '{bundle.manifest.policy.kind}' does not drive '{mode}': use {', '.join(kind.modes)}, "
            "or leave "
            "--policy out."
        )
    return mode


def open_policy(
    bundle: Bundle,
    task: str,
    cameras: Mapping[str, Camera],
    *,
    mode: str | None = None,
    engine: str = "cpu",
    gpu: bool = False,
    threads: int = 1,
    slow_trace: Trace | None = None,
    fast_trace: Trace | None = None,
    ends: Ends | None = None,
) -> Policy:
    """The steps of `bundle`, whatever its kind, told `task`, seeing through `cameras` (calibrations by name). `ends`:
    of the robot's joints (default: the bundle's).

    Raises PolicyError for a kind or `mode` that is not there, BundleError for engines that are not, KernelError where
    `gpu` cannot be.
    """
    kind, chosen = kind_of(bundle), mode_of(bundle, mode)
    traces = slow_trace or NoTrace(), fast_trace or NoTrace()
    opening = Opening(task, cameras, chosen, engine, gpu, threads, *traces, ends)
    slow, fast = kind.steps(bundle, opening)
    return Policy(bundle.manifest.policy.kind, chosen, slow, fast)
