"""Sync reads a second of other people's SDKs, for `benchmarks/bus.py`. Runs in .venv-peers: python bus_peers.py NAME PORT SECONDS."""

import sys
import time
from collections.abc import Callable
from typing import Any

IDS = [1, 2, 3, 4, 5, 6]


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
        assert group.txRxPacket() == 0
        return [group.getData(i, 56, 2) for i in IDS]

    return read


def dynamixel_sdk(port: str) -> Callable[[], Any]:
    import dynamixel_sdk as sdk

    handler = sdk.PortHandler(port)
    assert handler.openPort() and handler.setBaudRate(1_000_000)
    group = sdk.GroupSyncRead(handler, sdk.PacketHandler(2.0), 132, 4)
    for i in IDS:
        group.addParam(i)

    def read() -> Any:
        assert group.txRxPacket() == 0
        return [group.getData(i, 132, 4) for i in IDS]

    return read


if __name__ == "__main__":
    read = globals()[sys.argv[1]](sys.argv[2])
    seconds = float(sys.argv[3])
    assert list(read())[:3] == [2048, 2048, 2048], read()
    n, end, cpu = 0, time.perf_counter() + seconds, time.process_time()
    while time.perf_counter() < end:
        read()
        n += 1
    print(n / seconds, (time.process_time() - cpu) / n * 1e6)
