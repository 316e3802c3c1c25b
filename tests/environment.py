"""All variables in which the tests' environment differs from a user's, and an environment like a user's."""

import os

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # a test that asks the Hub fails at once; a user may ask it
    "CUDA_VISIBLE_DEVICES": "",  # the tests say the same on a machine with GPUs; tests/gpu is given another value
    "OMP_NUM_THREADS": "1",  # tests run in as many processes as there are cores; more threads would only wait
}
"""Name and value of each; `conftest.py` sets them unless they are set."""

_OF_A_USER = ("PATH", "HOME", "TMPDIR", "LANG")


def user_environment() -> dict[str, str]:
    """An environment for a command that must work where nothing is set."""
    return {name: os.environ[name] for name in _OF_A_USER if name in os.environ}
