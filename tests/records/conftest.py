"""Fixtures: records of a made-up run, and a corpus for studies."""

from corpus_fixture import corpus_file
from run_records import records, run, write

__all__ = ["corpus_file", "records", "run", "write"]
