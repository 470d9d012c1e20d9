"""The rows of the experiment `errata`, by part of the notes."""
