"""Bytes on the wire: one module a protocol."""
