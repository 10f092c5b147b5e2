"""What delays the loops: real-time rights, processor cores, clocks, power modes."""

from __future__ import annotations

import os
import platform
import re
import resource
import subprocess
from collections.abc import Iterator

from common.python import code_command
from runtime.doctor.finding import Finding, Machine

REBOOT = "where it asks to reboot, answer YES; then `sudo jetson_clocks`"
GPU_CLOCKS = ("17000000.gpu", "17000000.ga10b")  # devfreq's folder: from JetPack 6 on, and up to JetPack 5
LIMITS = "/etc/security/limits.d/90-harmowam.conf"


def _fifo() -> bool:
    """Whether this user may use SCHED_FIFO; tried in a child, so that this process stays as it is."""
    code = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))"
    return subprocess.run(code_command(code), capture_output=True, check=False).returncode == 0


def realtime(machine: Machine) -> Iterator[Finding]:
    """SCHED_FIFO, locked memory, its throttling, and whether the cores are enough."""
    limits = (
        f"run `echo '@realtime - rtprio 60\n@realtime - memlock unlimited' | sudo tee {LIMITS}`, `sudo groupadd -f "
        "realtime`, "
    )
    limits += "`sudo usermod -aG realtime $USER`, and log in again"
    if _fifo():
        yield Finding("real-time scheduling", "ok", "SCHED_FIFO is allowed")
    else:
        yield Finding(
            "real-time scheduling",
            "warn",
            "SCHED_FIFO is not allowed: ordinary work delays the loops by milliseconds",
            limits,
        )
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if soft == resource.RLIM_INFINITY or os.geteuid() == 0 or soft > 1 << 29:
        yield Finding("locked memory", "ok", "mlockall is allowed")
    else:
        yield Finding(
            "locked memory",
            "warn",
            f"only {soft // 1024} kB may be locked: a page that comes from the disk costs a deadline",
            limits,
        )
    share = machine.read("/proc/sys/kernel/sched_rt_runtime_us")
    if share and share != "-1" and int(share) < 950_000:
        yield Finding(
            "real-time share",
            "warn",
            f"real-time threads get {int(share) / 10_000:.0f} % of a core",
            "`sudo sysctl kernel.sched_rt_runtime_us=950000`",
        )
    allowed = len(os.sched_getaffinity(0))
    if allowed < 2:
        yield Finding(
            "cores",
            "warn",
            "one core for the loops, the motors and the cameras",
            "give it two: `taskset -c 0-1 harmowam ...`",
        )
    else:
        yield Finding("cores", "ok", f"{allowed} cores")
    load = float((machine.read("/proc/loadavg") or "0").split()[0])
    if load > allowed:
        yield Finding("load", "warn", f"load {load:.1f} on {allowed} cores", "stop what is not needed: `top -o %CPU`")
    swappiness = machine.read("/proc/sys/vm/swappiness")
    swaps = machine.read("/proc/swaps").splitlines()[1:]
    if swaps and swappiness and int(swappiness) > 20:
        yield Finding("swap", "warn", f"swap is on, swappiness {swappiness}", "`sudo sysctl vm.swappiness=1`")


def clocks(machine: Machine) -> Iterator[Finding]:
    """CPU governor, clock source and, on a Jetson, power mode, GPU clock and kernel."""
    yield from _cpu_clock(machine)
    yield from _clock_source(machine)
    if machine.jetson:
        yield _power_mode(machine)
        yield _gpu_clock(machine)
        yield from _kernel()


def _cpu_clock(machine: Machine) -> Iterator[Finding]:
    governors = {
        p.read_text().strip()
        for p in machine.path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    }
    slow = governors - {"performance"}
    if slow and not machine.jetson:
        mend = (
            "`for g in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do echo performance | sudo tee $g; done`"
        )
        yield Finding(
            "CPU clock",
            "warn",
            f"governor {', '.join(sorted(slow))}: the first milliseconds of each tick run slowly",
            mend,
        )
    elif governors and not slow:
        yield Finding("CPU clock", "ok", "governor performance")


def _clock_source(machine: Machine) -> Iterator[Finding]:
    source = machine.read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    if source in ("hpet", "acpi_pm"):
        yield Finding(
            "clock source",
            "warn",
            f"{source}: a time stamp costs a microsecond",
            "boot with `clocksource=tsc` if the processor's is stable",
        )
    elif source:
        yield Finding("clock source", "ok", source)


def _power_mode(machine: Machine) -> Finding:
    """The fastest mode has another number on every board: on an Orin Nano with the "super" modes 0 is 15 W and 2 is
    MAXN_SUPER."""
    modes = {
        int(k): v
        for k, v in re.findall(r"^<\s*POWER_MODEL ID=(\d+) NAME=(\S+)", machine.read("/etc/nvpmodel.conf"), re.M)
    }
    fastest = next((k for k, v in modes.items() if v.startswith("MAXN")), 0)
    found = re.search(r"pmode:(\d+)", machine.read("/var/lib/nvpmodel/status"))
    if found is None:
        return Finding("power mode", "warn", "unknown", "`sudo nvpmodel -q`")
    mode = int(found[1])
    name = f"{mode} ({modes[mode]})" if mode in modes else str(mode)
    if mode == fastest:
        return Finding("power mode", "ok", name)
    mend = f"`sudo nvpmodel -m {fastest}` (needs cooling; {REBOOT}; docs/jetson.md)"
    return Finding("power mode", "warn", f"{name}: not the fastest", mend)


def _gpu_clock(machine: Machine) -> Finding:
    folders = [f"/sys/class/devfreq/{name}" for name in GPU_CLOCKS]
    low, high = ("".join(machine.read(f"{folder}/{bound}_freq") for folder in folders) for bound in ("min", "max"))
    if not (low and high):
        return Finding("GPU clock", "warn", "unknown", "`sudo jetson_clocks`, then `sudo jetson_clocks --show`")
    if low != high:
        floats = f"floats between {int(low) // 10**6} and {int(high) // 10**6} MHz"
        return Finding("GPU clock", "warn", floats, "`sudo jetson_clocks`")
    return Finding("GPU clock", "ok", f"locked at {int(high) // 10**6} MHz")


def _kernel() -> Iterator[Finding]:
    if "PREEMPT_RT" not in platform.version():
        yield Finding(
            "kernel",
            "warn",
            "not a PREEMPT_RT kernel: single delays of milliseconds remain",
            "see docs/jetson.md, Real-time kernel",
        )
