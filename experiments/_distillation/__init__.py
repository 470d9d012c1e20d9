"""The parts of `distillation`."""
