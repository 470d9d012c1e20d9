"""The parts of `learned_schedule`."""
