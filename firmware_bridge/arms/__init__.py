"""Arm families: one file each, numpy only. Joint angles are those of the arm's maker, tool poses are the same for every family."""
