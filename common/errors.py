"""What the user can mend."""


class Mendable(Exception):
    """One sentence and the next step, exit code 2. The errors of all rooms derive from it; anything else that gets as
    far as the front door is a defect and keeps its traceback.
    """
