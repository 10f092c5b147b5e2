"""The page of `harmowam setup`: what each camera shows, and the name by which it stands in the robot file."""

from __future__ import annotations

import base64
import datetime
import html
import os
import shlex
import webbrowser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.files import write_whole
from runtime.cameras.preview import Look
from runtime.cameras.v4l2 import is_device, node

NAME = "cameras.html"
STYLE = """:root{--ink:#1d2733;--soft:#5d6b7a;--line:#e1e6eb}*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:#f4f6f8;margin:0}
main{max-width:1080px;margin:0 auto;padding:24px 16px 60px}
h1{font-size:24px;margin:0 0 2px}.sub{color:var(--soft);margin:0 0 18px}
.all{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));gap:14px}
figure{background:#fff;border:1px solid var(--line);border-radius:10px;margin:0;padding:12px}
figure img,.none{width:100%;aspect-ratio:4/3;object-fit:contain;background:#10151b;border-radius:6px;display:block}
.none{display:grid;place-items:center;text-align:center;padding:1em;color:#c3ccd5}
h2{font-size:19px;margin:10px 0 4px}h2.un{color:var(--soft)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 12px;margin:0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}"""


@dataclass(frozen=True)
class Card:
    """A camera on the page. `name`: its name in the robot file, "" where it has none; `look`: what it shows, None where
    it gives no picture."""

    source: str
    name: str
    look: Look | None
    told: str = "has no name yet"  # in place of a name


def _rows(card: Card) -> list[tuple[str, str]]:
    """What a user may type into the robot file, and what the camera was found to give, by name."""
    rows = []
    if is_device(card.source):
        path = node(card.source)
        device = str(Path(path).resolve())
        rows = [("device", device), ("lasting name", path if path != device else "none: it may change when replugged")]
    else:
        rows = [("source", card.source)]
    if card.look is not None:
        config = card.look.config
        size = f"{config.width} x {config.height} px"
        kind = f", {card.look.pixel_format}" if card.look.pixel_format else ""
        rows.append(("gives", f"{size}{kind}, {config.fps:g} pictures a second"))
    return rows


def _card(card: Card) -> str:
    unread = card.source == "sim" or card.source.startswith("slot:")
    why = "written by a program" if unread else "gives no picture: another program has it open, or it is unplugged"
    shown = f'<div class="none">{why}</div>'
    if card.look is not None:
        data = base64.b64encode(card.look.jpeg).decode()
        shown = f'<img alt="what {html.escape(card.name or card.source)} shows" src="data:image/jpeg;base64,{data}">'
    head = f"<h2>{html.escape(card.name)}</h2>" if card.name else f'<h2 class="un">{html.escape(card.told)}</h2>'
    rows = "".join(f"<dt>{name}</dt><dd>{html.escape(value)}</dd>" for name, value in _rows(card))
    return f"<figure>{shown}{head}<dl>{rows}</dl></figure>"


def page(cards: Sequence[Card], again: str) -> str:
    """The HTML text. `again`: the command that makes it anew; "" while names are asked for in the terminal, when it
    loads itself again every other second."""
    refresh, said = "", f"Pictures of {datetime.datetime.now().astimezone():%Y-%m-%d %H:%M}. "
    said += f"<code>{html.escape(again)}</code> takes new ones."
    if not again:
        refresh = '<meta http-equiv="refresh" content="2">'
        said = "Give each camera its name in the terminal; this page follows."
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">{refresh}<meta name="viewport" '
        f'content="width=device-width,initial-scale=1"><title>Cameras</title><style>{STYLE}</style></head><body><main>'
        f'<h1>What the cameras show</h1><p class="sub">{said}</p>'
        f'<div class="all">{"".join(map(_card, cards))}</div></main></body></html>'
    )


def write(folder: Path, cards: Sequence[Card], *, asking: bool = False) -> Path:
    """Write the page into `folder`; returns its path. `asking`: names are asked for in the terminal. Raises OSError."""
    path = folder / NAME
    write_whole(path, page(cards, "" if asking else f"harmowam setup --look --out {shlex.quote(str(folder))}"))
    return path


def has_display(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a window can be opened; over SSH mostly not."""
    return bool(environ.get("DISPLAY") or environ.get("WAYLAND_DISPLAY"))


def show(path: Path) -> None:
    """Open the page in the browser, where there is a display."""
    if has_display():
        webbrowser.open(path.absolute().as_uri())
