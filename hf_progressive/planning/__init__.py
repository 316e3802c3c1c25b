"""What a ladder will train, what it holds in memory and on disk, and what it costs, before any compute."""
