"""Fixtures of the studies' tests."""

from pathlib import Path

import pytest
from ladder_fixtures import write_corpus


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus."""
    return write_corpus(tmp_path_factory.mktemp("corpus"))
