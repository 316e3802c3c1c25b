"""What is known of a finished rung, of a family and of a study."""
