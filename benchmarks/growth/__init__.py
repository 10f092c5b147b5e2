"""How cost grows with cameras, servos, parameters, recorded time and episodes: `python -m benchmarks.growth`."""
