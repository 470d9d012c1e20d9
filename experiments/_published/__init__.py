"""The rows of the experiment `published`, one module a kind of figure."""
