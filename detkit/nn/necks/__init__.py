"""Features -> features."""
