"""Makes models better from feedback."""
