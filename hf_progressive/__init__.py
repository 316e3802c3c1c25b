"""Grow language models: every model of a family inherits from the one before it."""

__version__ = "0.1.0"
