"""Parts of the experiment tuned_rate."""
