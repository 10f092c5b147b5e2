"""Policies that LeRobot trained, as plain modules: one file a type, read from the folder that LeRobot saved.

The formats and the behaviour follow lerobot 0.4 to 0.6 and the papers that each file names; none of its code is used.
"""
