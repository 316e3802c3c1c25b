"""Fixtures: records of a made-up run."""

from run_records import records, run, write

__all__ = ["records", "run", "write"]
