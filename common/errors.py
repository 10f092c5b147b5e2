"""The base class of errors that the user can mend."""

from __future__ import annotations

from common.files import barred


class Mendable(Exception):
    """An error that the user can mend: one sentence and the next step, exit code 2. Every package derives its errors
    from it; any other exception that reaches the command line is a defect and keeps its traceback.

    Where a file that this user may not read is behind it, its text says that and nothing else: who reads a file takes
    one that does not open for a damaged one.
    """

    def __str__(self) -> str:
        return unreadable(self) or super().__str__()


def unreadable(error: BaseException) -> str:
    """What `barred` says of the file or folder whose opening is behind `error`; "" where this user's rights are not."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, PermissionError) and isinstance(seen.filename, str):
            return barred(seen.filename)
        seen = seen.__cause__ or seen.__context__
    return ""
