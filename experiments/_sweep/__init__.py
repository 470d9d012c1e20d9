"""Many points of one experiment."""
