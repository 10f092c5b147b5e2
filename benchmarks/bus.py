"""Bus master against the paced virtual bus, and side by side with other SDKs: `python -m benchmarks.bus`.

The virtual servos run in a process of their own. Paced: cycle = read all + write all of six STS servos at 1 Mbaud,
against the time that the bytes need on the wire. Not paced: sync reads of six positions a second, each SDK in its turn,
many short rounds, best and median.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from common.clock import prefer, real_time
from firmware_bridge.bus.master import Bus
from firmware_bridge.bus.port import Port
from firmware_bridge.codecs import feetech as fs
from firmware_bridge.motion.arm import Arm
from firmware_bridge.servos.models import MODELS
from firmware_bridge.virtual.bus import VirtualBus
from firmware_bridge.virtual.campaign import KOCH, SO101
from firmware_bridge.virtual.line import PtyBus
from firmware_bridge.virtual.plant import KinematicPlant

CONFIGS = {"feetech": SO101, "dynamixel": dataclasses.replace(KOCH, models=("XL430-W250",) * 6)}


def serve(protocol: str, baud: int) -> None:
    """Virtual servos until stdin closes; prints the port."""
    config = CONFIGS[protocol]
    servos = VirtualBus(config.ids, KinematicPlant(np.full(6, 2048.0)), [MODELS[m] for m in config.model_names])
    for i in config.ids:
        servos.put(i, "return_delay", 0)
    real_time(10)
    print(PtyBus(servos, baud, latency_s=0.0).path, flush=True)
    sys.stdin.read()


def start(protocol: str, baud: int) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, __file__, "--serve", protocol, "--baud", str(baud)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def ask(process: subprocess.Popen[str], line: str) -> str:
    """Say `line` to a process and wait for its answer."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(line)
    process.stdin.flush()
    return process.stdout.readline()


def paced(cycles: int) -> None:
    process, path = start("feetech", 1_000_000)
    port = Port.open(path)
    arm = Arm(Bus(port, margin_s=0.1), SO101)
    arm.torque_on()
    goal = arm.read().q
    real_time(20)
    wire = (14 + 6 * 10 + 26) * 10e-6 * 1e3  # sync read request, six replies of 4 bytes, sync write of 2
    times, began = [], time.process_time()
    for _ in range(cycles):
        t = time.perf_counter()
        arm.exchange(goal)  # as the motor process does
        times.append((time.perf_counter() - t) * 1e3)
    cpu = (time.process_time() - began) / cycles * 1e6
    p50, p99 = np.percentile(times[100:], (50, 99))
    print(
        f"paced, {cycles} cycles of read all + write all: wire {wire:.3f} ms, p50 {p50:.3f} ms ({p50 / wire:.2f} x), "
        f"p99 {p99:.3f} ms ({p99 / wire:.2f} x), CPU {cpu:.0f} us a cycle, errors {dict(arm.bus.errors)}"
    )
    port.write(
        fs.sync_read(SO101.ids, 56, 4)
    )  # the same bytes with no master at all: what this machine's terminal costs
    floor = []
    for _ in range(cycles // 2):
        t, got = time.perf_counter(), 0
        while got < 60:
            got += len(port.read(time.monotonic_ns() + 10**9))
        port.write(fs.sync_write(42, dict.fromkeys(SO101.ids, b"\x00\x08")) + fs.sync_read(SO101.ids, 56, 4))
        floor.append((time.perf_counter() - t) * 1e3)
    p50, p99 = np.percentile(floor[100:], (50, 99))
    print(
        f"  the same bytes written and read without a master: p50 {p50:.3f} ms ({p50 / wire:.2f} x), p99 {p99:.3f} ms "
        f"({p99 / wire:.2f} x)"
    )
    prefer(0)
    port.close()
    process.communicate("")


def rates(rounds: int, seconds: float) -> None:
    """Each master in a process of its own, at one priority, on a bus of its own; short turns, because the machine's
    speed changes."""
    rows = [
        ("ours (STS)", "feetech", "ours"),
        ("rustypot (STS)", "feetech", "rustypot"),
        ("scservo_sdk (STS)", "feetech", "scservo_sdk"),
        ("ours (Dynamixel)", "dynamixel", "ours_dxl"),
        ("rustypot (Dynamixel)", "dynamixel", "rustypot_dxl"),
        ("dynamixel_sdk (Dynamixel)", "dynamixel", "dynamixel_sdk"),
    ]
    servers, masters = [], {}
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    for name, protocol, function in rows:
        server, path = start(protocol, 0)
        servers.append(server)
        command = [sys.executable, str(Path(__file__).with_name("bus_peers.py")), function, path]
        masters[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert ask(masters[name], "") == "ready\n"
    got: dict[str, list[list[float]]] = {name: [] for name in masters}
    for _ in range(rounds):
        for name, master in masters.items():
            got[name].append([float(x) for x in ask(master, f"{seconds}\n").split()])
    for process in (*masters.values(), *servers):
        process.communicate("")
    print(f"{'six servos, not paced':28}{'median /s':>12}{'best /s':>12}{'CPU us':>10}{'ours ahead in':>16}")
    for name, values in got.items():
        rate, cpu = zip(*values, strict=True)
        own = [v[0] for v in got["ours (STS)" if "STS" in name else "ours (Dynamixel)"]]
        ahead = f"{sum(a > b for a, b in zip(own, rate, strict=True))} of {rounds}" if "ours" not in name else ""
        print(f"{name:28}{statistics.median(rate):12.0f}{max(rate):12.0f}{statistics.median(cpu):10.0f}{ahead:>16}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve")
    parser.add_argument("--baud", type=int, default=0)
    parser.add_argument("--cycles", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=0.1)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.baud)
    else:
        paced(args.cycles)
        rates(args.rounds, args.seconds)
