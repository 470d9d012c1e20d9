"""Learning to learn sinusoids: the tasks, six methods by metalr, the same by hand."""
