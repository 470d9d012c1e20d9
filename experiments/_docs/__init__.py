"""The site of guides and docstrings."""
