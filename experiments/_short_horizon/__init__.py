"""Parts of the experiment `short_horizon`."""
