"""How cost grows, one page by one command: `python -m benchmarks.growth [--only cameras,servos] [--markdown FILE]`.

Each section lets real parts do more and more work, every point in a process of its own, and compares what a point
costs with its neighbour's: rate, overhead at p50 and p99, processor, memory, and the log-log slope of cost over work.
A slope above one means that the cost grows faster than the work; the page says so by itself. `--json` keeps the
figures; sections that `--only` leaves out are taken from that file, so that a page can be measured in parts.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from benchmarks.growth.table import MORE, NOISE, Row, Table, as_json, bends, markdown

SECTIONS = {  # module -> heading
    "cameras": "Cameras",
    "servos": "Servos",
    "engines": "Engines",
    "logs": "Logs",
    "datasets": "Datasets",
}


def processor() -> str:
    """The processor's name as Linux tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def machine() -> str:
    return f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def table_of(kept: dict[str, Any]) -> Table:
    """Inverse of `as_json`."""
    rows = tuple(Row(r["name"], r["work"], r["cost"]) for r in kept["rows"])
    return Table(kept["title"], kept["unit"], rows, tuple(kept["watched"]), kept["note"], kept["asked"])


def page(sections: dict[str, dict[str, Any]]) -> str:
    """The page of all sections that were measured."""
    text = (
        "# How cost grows\n\n"
        "`python -m benchmarks.growth --markdown docs/growth.md` writes this page; `--only` measures single sections. "
        "Every point ran in a process of its own.\n\n"
        "The slope of a cost is log(cost ratio) / log(work ratio) of two neighbours: 1 is as fast as the work, less is "
        f"a part that does not grow, and above {MORE}, with {NOISE - 1:.0%} more than "
        "its share, the program calls it faster than the work. Not judged: p99, and "
        "seconds by the clock, which have the machine's other work in them (the load is given; loops run with "
        "SCHED_FIFO as on a robot, everything else does not).\n"
    )
    bent = [
        f"* {heading}, {t['title']}: {line}\n"
        for name, heading in SECTIONS.items()
        for t in sections.get(name, {}).get("tables", ())
        for line in bends(table_of(t))
    ]
    text += f"\n## Where it bends\n\n{''.join(bent) or 'Nowhere.'}"
    for name, heading in SECTIONS.items():
        if name in sections:
            kept = sections[name]
            text += f"\n## {heading}\n\nMachine: {kept['machine']}; load {kept['load']} at the start.\n\n"
            text += "\n".join(markdown(table_of(t)) for t in kept["tables"])
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas between")
    parser.add_argument("--small", action="store_true", help="a few turns of everything: does it run?")
    parser.add_argument("--json", type=Path, help="figures; a section that is there and not measured now is kept")
    parser.add_argument("--markdown", type=Path, help="the page")
    given = parser.parse_args()
    asked = given.only.split(",")
    if unknown := [name for name in asked if name not in SECTIONS]:
        parser.error(f"--only knows {', '.join(SECTIONS)}, not {unknown[0]}")
    sections: dict[str, dict[str, Any]] = {}
    if given.json and given.json.exists():
        sections = json.loads(given.json.read_text())
    for name in asked:
        load, began = round(os.getloadavg()[0], 1), time.monotonic()
        made = importlib.import_module(f"benchmarks.growth.{name}").tables(given.small)
        sections[name] = {"machine": machine(), "load": load, "tables": [as_json(t) for t in made]}
        print("\n".join(markdown(t) for t in made), flush=True)
        print(f"[{name}: {time.monotonic() - began:.0f} s]", flush=True)
    if given.json:
        given.json.write_text(json.dumps(sections, indent=1) + "\n")
    if given.markdown:
        given.markdown.write_text(page(sections))


if __name__ == "__main__":
    main()
