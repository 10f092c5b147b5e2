"""Python processes that import nothing from the folder they are started in.

`python -m` and `python -c` put the current folder first on the search path: an `argparse.py` that lies there would run
inside the guard and the motor process, as root on many robots. (`python -P` does the same from Python 3.11 on.)
"""

from __future__ import annotations

import sys

_SAFE = "import sys; sys.path[:1] = sys.path[:1] if sys.path[0] else []; "


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs `module` as `python -m` does."""
    run = f"import runpy; runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
    return [sys.executable, "-c", _SAFE + run, *arguments]


def code_command(code: str) -> list[str]:
    """The command that runs `code` as `python -c` does."""
    return [sys.executable, "-c", _SAFE + code]
