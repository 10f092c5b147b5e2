"""What may move a motor: the arm in radians, limits, safety, motor process, guard."""
