"""One training run: the Trainer with Φ, its checkpoints, its precision and its speed."""
