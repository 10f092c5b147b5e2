"""The two-rate loop on the wall clock, its delay compensation and its health."""
