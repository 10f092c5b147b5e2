"""The command line: the `harmowam` command, which imports each package when it is used."""

__version__ = "0.1.0"
