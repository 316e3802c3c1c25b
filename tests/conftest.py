"""What every test shares: its environment."""

import os

from environment import ENVIRONMENT

# Before any import of torch or a Hugging Face library: they read these once.
for _name, _value in ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)
