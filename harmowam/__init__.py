"""The front door: the `harmowam` command, which imports each room when it is asked for."""

__version__ = "0.1.0"
