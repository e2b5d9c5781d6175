"""From cases to sessions and requests."""
