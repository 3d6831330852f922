"""Which prediction answers for which object."""
