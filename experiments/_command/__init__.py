"""The command line, and what running an experiment takes."""
