"""Cameras and joints: what the robot's geometry is, and the files that say so."""
