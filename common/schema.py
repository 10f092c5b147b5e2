"""Reads files from outside within bounds and compares them with a declared shape; raises one sentence about what is
wrong.

`parse_json` and `parse_toml` refuse what is too large, nested too deep, given twice, or a number or text that no
program can work with; `shaped` makes a `msgspec.Struct` of the rest. All raise Malformed, which names the key. Callers
raise an error of their own that adds the file and the next step.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import sys
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

T = TypeVar("T")
DEPTH = 32  # levels of nested tables and lists
LINE = 2000  # characters per TOML line: a name of 30,000 parts, which must be one line, takes a parser minutes
NAME = 255  # characters per key: some keys become names of files and folders
INTEGER = 2**63
# Text that is printed or becomes part of a path: no control characters.
Text = Annotated[str, msgspec.Meta(max_length=1000, pattern=r"\A[^\x00-\x1f\x7f]*\Z", description="text in one line")]
Name = Annotated[
    str,
    msgspec.Meta(
        pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}\Z",
        description="a name of at most 64 letters, digits, '_', '-' and '.'",
    ),
]

Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z", description="a SHA-256")]


class Malformed(Exception):
    """What is wrong with a file; the caller adds the file's name and the next step."""


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table whose keys are all declared: a misspelt key is refused with a list of the known keys."""


def read_bounded(path: Path, most: int) -> bytes:
    """Content of a file of at most `most` bytes. Raises OSError where it cannot be read, Malformed where it is larger,
    or a pipe or a device, which may never end."""
    with open(path, "rb", opener=_at_once) as f:
        if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):
            raise Malformed("it is a pipe or a device, not a file")
        data = f.read(most + 1)
    if len(data) > most:
        raise Malformed(f"it is larger than {most // 1024} KiB")
    return data


def _at_once(path: str, flags: int) -> int:
    """Opens a pipe without waiting for its writer."""
    return os.open(path, flags | os.O_NONBLOCK)


def parse_json(data: bytes) -> Any:
    """Plain data of a JSON text in which every key is given once and every number is finite. Raises Malformed."""
    try:
        raw = json.loads(data.decode(), object_pairs_hook=_once)
    except RecursionError:
        raise Malformed(f"it is nested more than {DEPTH} deep") from None
    except ValueError as e:  # includes bytes that are no text, and integers too long to be read
        raise Malformed(f"it is no JSON ({e})") from None
    _refuse_strange(raw)
    return raw


def parse_toml(data: bytes) -> dict[str, Any]:
    """Plain data of a TOML text, like `parse_json`."""
    long = next((k for k, line in enumerate(data.split(b"\n"), 1) if len(line) > LINE), None)
    if long is not None:
        raise Malformed(f"its line {long} is longer than {LINE} characters")
    try:
        raw = tomllib.loads(data.decode())
    except RecursionError:
        raise Malformed(f"it is nested more than {DEPTH} deep") from None
    except ValueError as e:
        raise Malformed(f"it is not TOML ({e})") from None
    _refuse_strange(raw)
    return raw


def shaped(raw: Any, kind: type[T]) -> T:
    """`raw` as `kind`. Raises Malformed with the path of the first key that does not fit, what is allowed there and
    what was found."""
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as e:
        raise Malformed(_explain(str(e), raw, kind)) from None
    except UnicodeEncodeError:  # data that did not come through the parsers above
        _refuse_strange(raw)
        raise


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [k for k, _ in pairs]
        twice = next(k for k in names if names.count(k) > 1)
        raise Malformed(f"'{shown(twice)}' is given twice")
    return table


def _refuse_strange(raw: Any) -> None:
    """Raises Malformed for deep nesting, and for names, numbers and texts that would fail later, far from the file."""
    open_ends: list[tuple[list[str | int], Any]] = [([], raw)] if isinstance(raw, (dict, list)) else []
    while open_ends:
        path, value = open_ends.pop()
        if len(path) > DEPTH:
            raise Malformed(f"it is nested more than {DEPTH} deep")
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(key, str) and (len(key) > NAME or _halved(key)):
                where = f" in '{_path(path)}'" if path else ""
                what = "longer than 255 characters" if len(key) > NAME else "no text (half of a surrogate pair)"
                raise Malformed(f"the name '{shown(key)}'{where} is {what}")
            if isinstance(inner, (dict, list)):
                open_ends.append(([*path, key], inner))
            elif isinstance(inner, float) and not math.isfinite(inner):
                raise Malformed(f"'{_path([*path, key])}' must be a finite number, not {inner}")
            elif isinstance(inner, int) and abs(inner) >= INTEGER:
                raise Malformed(f"'{_path([*path, key])}' is a whole number of more than 64 bits")
            elif isinstance(inner, str) and _halved(inner):
                raise Malformed(f"'{_path([*path, key])}' is no text (half of a surrogate pair)")


def _halved(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text)


def shown(value: Any) -> str:
    """The value as one printable line, shortened."""
    if isinstance(value, (dict, list)):
        return f"a list of {len(value)}" if isinstance(value, list) else "a table" if value else "an empty one"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= 60 else text[:57] + "..."


def _path(keys: list[str | int]) -> str:
    """The keys as one name, like `arm.joint[2].id`."""
    out = ""
    for key in keys:
        out += f"[{key}]" if isinstance(key, int) else f"{'.' if out else ''}{shown(key)}"
    return out


def _plain(kind: Any) -> tuple[Any, list[msgspec.Meta]]:
    """A declared type without its None alternative, and the constraints declared with it."""
    metas: list[msgspec.Meta] = []
    while True:
        if get_origin(kind) is Annotated:
            metas += [m for m in get_args(kind)[1:] if isinstance(m, msgspec.Meta)]
            kind = get_args(kind)[0]
        elif get_origin(kind) in (Union, types.UnionType):
            kind = next(a for a in get_args(kind) if a not in (type(None), msgspec.UnsetType))
        else:
            return kind, metas


def _inner(kind: Any, key: str | int) -> Any:
    """The declared type of the value under `key` in a `kind`."""
    kind, _ = _plain(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return typing.get_type_hints(kind, include_extras=True)[str(key)]
    inside = get_args(kind)
    return inside[-1] if get_origin(kind) is dict else inside[0]


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
        return True
    except msgspec.ValidationError:
        return False


def _explain(said: str, raw: Any, kind: Any) -> str:
    """A sentence from msgspec's error, which names no key of a dict, gives one bound of two and not the value."""
    what, _, at = said.partition(" - at `")
    keys: list[str | int] = []
    for name, index in re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", at):
        inner = _inner(kind, name)
        key: str | int = name or (
            int(index) if index != "..." else next(k for k, v in raw.items() if not _fits(v, inner))
        )
        raw, kind = raw[key], inner
        keys.append(key)
    here = _path(keys)
    if named := re.search("field `(.*)`", what):
        full = _path([*keys, named[1]])
        if "missing" in what:
            return f"'{full}' is missing ({_allowed(_inner(kind, named[1]))})"
        known = ", ".join(sorted(_plain(kind)[0].__struct_encode_fields__))
        return f"'{full}' is no key that is known here ({known})"
    if at.startswith("key`"):
        name_kind = get_args(_plain(kind)[0])[0]
        bad = next(k for k in raw if not _fits(k, name_kind))
        return f"the name '{shown(bad)}' in '{here}' must be {_allowed(name_kind)}"
    if not re.match("Expected|Invalid|Number out of range", what):  # raised by a Struct's __post_init__
        return f"'{here}': {what}" if here else what
    value = f"'{shown(raw)}'" if isinstance(raw, str) else shown(raw)
    subject = f"'{here}'" if here else "it"
    return f"{subject} must be {_allowed(kind)}, not {value}"


def _allowed(kind: Any) -> str:
    """What is allowed in a place of this declared type."""
    kind, metas = _plain(kind)
    if told := next((m.description for m in metas if m.description), None):
        return told
    low, high = (next((getattr(m, k) for m in metas if getattr(m, k) is not None), None) for k in ("ge", "le"))
    span = f" from {low:g} to {high:g}" if low is not None and high is not None else ""
    if get_origin(kind) is Literal:
        return " or ".join(map(str, get_args(kind)))
    fewest, most = (
        next((getattr(m, k) for m in metas if getattr(m, k) is not None), None) for k in ("min_length", "max_length")
    )
    count = "" if most is None else f" of {fewest if fewest == most else f'{fewest or 0} to {most}'}"
    if get_origin(kind) in (list, tuple):
        return f"a list{count}: {_allowed(get_args(kind)[0])} each"
    if get_origin(kind) is dict:
        return f"a table{count or ' of'} keys"
    words = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}
    return words.get(kind, "a table of keys") + span
