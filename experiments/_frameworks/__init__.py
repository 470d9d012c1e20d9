"""A model a module, as its framework writes it; all of them as plain functions."""
