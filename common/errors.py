"""The base class of errors that the user can mend."""


class Mendable(Exception):
    """An error that the user can mend: one sentence and the next step, exit code 2. Every package derives its errors
    from it; any other exception that reaches the command line is a defect and keeps its traceback."""
