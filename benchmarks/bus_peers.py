"""Sync reads of six positions by our bus master and by other people's SDKs, for `benchmarks/bus.py`: python
bus_peers.py NAME PORT.

Each line on stdin is a turn of so many seconds; the answer is reads a second and CPU microseconds a read. All read
numbers, not bytes.
"""

import struct
import sys
import time
from collections.abc import Callable
from typing import Any

IDS = [1, 2, 3, 4, 5, 6]


def ours(
    port: str, protocol: str = "feetech", address: int = 56, size: int = 2, layout: str = "<5xHx"
) -> Callable[[], Any]:
    from firmware_bridge.bus.master import Bus
    from firmware_bridge.bus.port import Port

    bus, ids, numbers = Bus(Port.open(port), margin_s=0.1, protocol=protocol), tuple(IDS), struct.Struct(layout)

    def read() -> Any:
        got = bus.exchange(b"", ids, address, size)  # as a tick does
        if isinstance(got, bytes):
            return [n for (n,) in numbers.iter_unpack(got)]
        return [int.from_bytes(r.data, "little") for r in got.values()]

    return read


def ours_dxl(port: str) -> Callable[[], Any]:
    return ours(port, "dynamixel", 132, 4, "<9xI2x")


def rustypot(port: str) -> Callable[[], Any]:
    import rustypot

    c = rustypot.Sts3215PyController(serial_port=port, baudrate=1_000_000, timeout=0.1)
    return lambda: c.sync_read_raw_present_position(IDS)


def rustypot_dxl(port: str) -> Callable[[], Any]:
    import rustypot

    c = rustypot.Xl330PyController(serial_port=port, baudrate=1_000_000, timeout=0.1)
    return lambda: c.sync_read_raw_present_position(IDS)


def scservo_sdk(port: str) -> Callable[[], Any]:
    import scservo_sdk as sdk

    handler = sdk.PortHandler(port)
    assert handler.openPort() and handler.setBaudRate(1_000_000)
    group = sdk.GroupSyncRead(handler, sdk.PacketHandler(0), 56, 2)
    for i in IDS:
        group.addParam(i)

    def read() -> Any:
        return [] if group.txRxPacket() else [group.getData(i, 56, 2) for i in IDS]

    return read


def dynamixel_sdk(port: str) -> Callable[[], Any]:
    import dynamixel_sdk as sdk

    handler = sdk.PortHandler(port)
    assert handler.openPort() and handler.setBaudRate(1_000_000)
    group = sdk.GroupSyncRead(handler, sdk.PacketHandler(2.0), 132, 4)
    for i in IDS:
        group.addParam(i)

    def read() -> Any:
        return [] if group.txRxPacket() else [group.getData(i, 132, 4) for i in IDS]

    return read


if __name__ == "__main__":
    read = globals()[sys.argv[1]](sys.argv[2])
    assert list(read()) == [2048] * 6
    print("ready", flush=True)
    for line in sys.stdin:
        n, cpu, began = 0, time.process_time(), time.perf_counter()
        end = began + float(line)
        while (now := time.perf_counter()) < end or not n:
            n += len(read()) == 6  # on a busy machine an SDK's own timeout may strike
        print(n / (now - began), (time.process_time() - cpu) / n * 1e6, flush=True)
