"""When a policy's own word that its task is done counts."""

from __future__ import annotations

from runtime.bundle import Bundle
from runtime.contracts import Prior


class Finish:
    """Watches P(done) of one Prior after the other: the policy says that it is done once P(done) has been above
    `above` in every Prior over `for_s`. A single picture may mislead, and what was let go may still fall."""

    def __init__(self, above: float, for_s: float):
        self.above, self.for_ns = above, int(for_s * 1e9)
        self.reset()

    def reset(self) -> None:
        """Forget what was said: another task begins."""
        self._since_ns: int | None = None

    def told(self, prior: Prior) -> bool:
        """Whether, with this Prior as the newest, the policy says that it is done. A P(done) that is not a number is
        no yes."""
        if not prior.done > self.above:
            self._since_ns = None
            return False
        if self._since_ns is None:
            self._since_ns = prior.t_capture_ns
        return prior.t_capture_ns - self._since_ns >= self.for_ns


def finish_of(bundle: Bundle) -> Finish | None:
    """The watch that the bundle's manifest asks for; None where its policy does not say when it is done."""
    gate = bundle.manifest.gate
    return None if gate.done is None else Finish(gate.done, gate.done_s)
