"""Fixtures: a corpus for studies."""

from corpus_fixture import corpus_file

__all__ = ["corpus_file"]
