"""Packets that come after a request, sorted: which of them are its answers, and what is wrong with the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from firmware_bridge.bus.echo import Echoes
from firmware_bridge.codecs import dynamixel as dxl
from firmware_bridge.codecs.feetech import Packet
from firmware_bridge.servos.models import Codec

# Places in the bus's counters.
ECHO = (-1, "echo")
DAMAGED = (-1, "bytes of damaged packets")


class Reply(NamedTuple):
    """Error byte (Feetech: condition bits; Dynamixel: alert and error number) and data of one servo's status packet."""

    bits: int
    data: bytes


class Answers:
    """Packets that came after a request, sorted: `got`, the answers of `servos` with `size` data bytes; the rest is
    counted in `errors`.

    `fast`: a fast sync read's joint answer is waited for. `late(servo, answer)`: whether an earlier request was owed
    this one.
    """

    def __init__(
        self,
        codec: Codec,
        errors: Counter[tuple[int, str]],
        echoes: Echoes,
        late: Callable[[int, tuple[int, bytes]], bool],
    ):
        self._codec, self._errors, self._echoes, self._late = codec, errors, echoes, late
        self.begin((), 0, False)

    def begin(self, servos: Sequence[int], size: int, fast: bool) -> None:
        """Wait for the answers to the next request."""
        self.servos, self.size, self.fast = servos, size, fast
        self.got: dict[int, Reply] = {}
        self.spoiled: set[int] = set()  # ids that two servos answered for
        self.order = -1  # place in `servos` of who answered last

    def sort(self, packet: Packet) -> None:
        """Take one packet's answer, or count what is wrong with it."""
        found, servo, errors = self._codec.answer(packet), packet.servo, self._errors
        if self._echoes.has(packet):
            errors[ECHO] += 1
            return
        if found is None:
            if self.fast:
                answers = dxl.fast_answers(packet, self.servos, self.size)
                self.got.update({i: Reply(bits, data) for i, bits, data in answers})
            else:
                errors[-1, "no status packet"] += 1
        elif len(found[1]) != self.size:
            if not self._late(servo, found):
                refused = self._codec is dxl and found[0] & 0x7F
                why = f"refused ({dxl.ERRORS.get(refused, refused)})" if refused else "wrong length"
                errors[servo, why] += 1
        elif servo not in self.servos:
            errors[servo, "unexpected id"] += 1
        elif servo in self.got or servo in self.spoiled:
            errors[servo, "duplicate id"] += 1
            self.got.pop(servo, None)
            self.spoiled.add(servo)
        elif self.servos.index(servo) <= self.order:
            errors[servo, "out of turn"] += 1
        else:
            self.order = self.servos.index(servo)
            self.got[servo] = Reply(*found)
