"""Echoes: what a half-duplex adapter sends back of what it is given, at once or some milliseconds late."""

from __future__ import annotations

from collections import OrderedDict

from firmware_bridge.codecs.dynamixel import STATUS
from firmware_bridge.codecs.feetech import Packet
from firmware_bridge.servos.models import codec

ECHO_NS = 2_500_000_000  # an echo that is later than this does not come: a longer USB stall loses its bytes

TOLD = "{} sends back what it is given (an echo): that is told apart from answers and thrown away"  # of a port


class Echoes:
    """Packets that were sent within `ECHO_NS`: a packet that equals one of them is an echo, and no answer.

    A Feetech request has the form of a status packet (a read of two bytes looks like an answer of two bytes), so
    nothing but what was sent tells them apart. A servo's answer can equal a request as well (a ping's, when the servo
    reports a wrong voltage): it is passed over like an echo, and the next question is of another length.
    """

    def __init__(self, protocol: str) -> None:
        self._codec = codec(protocol)
        # The code of a status packet that is no instruction's: Feetech's without a condition, Dynamixel's always.
        self._answer_only = STATUS if protocol == "dynamixel" else 0
        self._sent: OrderedDict[bytes, int] = OrderedDict()  # packet -> when it was sent, oldest first
        self.longest = 0  # bytes of the longest packet that was ever sent

    def sent(self, packet: bytes, now_ns: int) -> None:
        """Note one packet that is handed to the port."""
        sent = self._sent
        sent[packet] = now_ns
        sent.move_to_end(packet)
        self.longest = max(self.longest, len(packet))
        while (oldest := next(iter(sent))) != packet and now_ns - sent[oldest] > ECHO_NS:
            del sent[oldest]

    def has(self, packet: Packet) -> bool:
        """Whether a packet that came is an echo."""
        return packet.code != self._answer_only and self._codec.packet(*packet) in self._sent

    def among(self, answers: bytes, step: int) -> bool:
        """Whether one of the status packets of `step` bytes each in `answers` may be an echo. Cheap while no servo
        reports a condition."""
        conditions = answers[self._codec.DATA_AT - 1 :: step]
        return any(conditions) and any(answers[k : k + step] in self._sent for k in range(0, len(answers), step))
