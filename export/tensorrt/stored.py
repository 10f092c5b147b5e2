"""The plans of a bundle's engines as a file among its reports."""

from __future__ import annotations

from pathlib import Path

import msgspec

from common.files import write_whole
from common.schema import Malformed, read_bounded
from export.gates import ExportError
from export.tensorrt.gate import Judged
from runtime.engines.plan import MOST_BYTES, PLAN


def write_plan(judged: Judged, path: Path) -> Path:
    """Write the plans to `path` and return it."""
    write_whole(path, msgspec.json.format(msgspec.json.encode(judged), indent=1))
    return path


def read_plan(bundle: Path) -> Judged:
    """The plans of the bundle at `bundle`. Raises ExportError where it has none, or where the file is damaged."""
    path = bundle / "reports" / PLAN
    again = (
        f"export it again with `harmowam export --target tensorrt --out {bundle}` where TensorRT for RTX is installed"
    )
    try:
        return msgspec.json.decode(read_bounded(path, MOST_BYTES), type=Judged)
    except FileNotFoundError as e:
        raise ExportError(f"{bundle} holds no plan of TensorRT's compiler: {again}.") from e
    except (OSError, Malformed, msgspec.DecodeError) as e:
        raise ExportError(f"{path} cannot be read ({e}): {again}.") from e
