"""What every test shares: its environment."""

import contextlib
import gc
import os

from environment import ENVIRONMENT

# Before any import of torch or a Hugging Face library: they read these once.
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

# How long an example takes says how busy a machine is. (Machines that are lent for tests/gpu may lack the package.)
with contextlib.suppress(ImportError):
    from hypothesis import settings

    settings.register_profile("without_deadline", deadline=None)
    settings.load_profile("without_deadline")


def pytest_collection_finish() -> None:
    """Let no collection of garbage, which every comparison of logits asks for, look through what was imported."""
    gc.collect()
    gc.freeze()
