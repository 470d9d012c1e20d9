"""The parts of `learned_optimizer`."""
