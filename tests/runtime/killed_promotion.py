"""Plays kills: `python -m tests.runtime.killed_promotion promote|rollback FOLDER BUNDLE`.

For n = 1, 2, ... a process works on a copy of FOLDER and dies at its nth change of a file in it. Prints, as a list in
JSON, the names of the current bundle and of the one before that each death left, and whether a second process then did
the work and left nothing of the first one's.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from common.slots import memory_folder
from runtime.bundle import Bundle
from runtime.promotion import promote, rollback

REMOVALS = ("os.remove", "os.rmdir")  # by the name in an open folder, where a tree is removed
CHANGES = ("open", "os.rename", "os.symlink", "os.mkdir", "shutil.copyfile", *REMOVALS)


def killed(work, number, folder):
    """Exit code of a process that dies, as by kill -9, just before its change `number`; 0 where it made fewer."""
    pid = os.fork()
    if pid == 0:
        made = 0

        def count(event, args):
            nonlocal made
            reads = event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            there = any(str(folder) in str(a) for a in args) or (event in REMOVALS and args[1] != -1)
            if event in CHANGES and not reads and there:
                made += 1
                if made == number:
                    os._exit(9)

        sys.addaudithook(count)
        work(folder)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def names(folder):
    links = [folder / name for name in ("current", "previous")]
    return [Bundle.load(link).manifest.name if link.exists() else None for link in links]


def main(verb, folder, bundle):
    opened = Bundle.load(bundle)

    def work(where):
        return promote(opened, where) if verb == "promote" else rollback(where)

    with tempfile.TemporaryDirectory(dir=memory_folder()) as name:  # where fsync takes no time
        print(json.dumps(play(work, folder, Path(name) / "killed")))


def play(work, folder, place):
    left: list[dict[str, object]] = []
    code = 9
    while code:
        copy = shutil.copytree(folder, place, symlinks=True)
        code = killed(work, len(left) + 1, copy)
        found = names(copy)
        work(copy)
        tidy = len(list((copy / "bundles").iterdir())) <= 2 and len(list(copy.glob(".state*"))) == 2
        left.append({"left": found, "then": names(copy), "tidy": tidy})
        shutil.rmtree(copy)
    return left


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
