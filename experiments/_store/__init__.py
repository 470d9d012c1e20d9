"""Results of sweeps, in one file."""
