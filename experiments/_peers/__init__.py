"""The parts of the experiment `peers`: the work, the ways to do it, the judge."""
