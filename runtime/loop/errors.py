"""What ends a run."""

from __future__ import annotations

from common.errors import Mendable


class RunError(Mendable):
    """A run that cannot start or had to end; one sentence and the next step."""
