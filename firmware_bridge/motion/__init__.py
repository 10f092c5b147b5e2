"""Everything that moves a motor: the arm in radians, limits, safety machine, motor process, guard."""
