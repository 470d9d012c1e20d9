"""Pages, figures and their style."""
