"""Measuring a model: bits per byte of held-out text, and CORE."""
