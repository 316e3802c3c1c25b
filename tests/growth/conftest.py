"""Fixtures of the growth tests."""

import pytest
from growth_checkpoints import gpt2, save


@pytest.fixture(scope="session")
def parent(tmp_path_factory):
    """A tiny GPT-2 in float32, read-only for the tests that share it."""
    return save(gpt2(), tmp_path_factory.mktemp("parent") / "gpt2")
