"""Parts of `example_weights`."""
