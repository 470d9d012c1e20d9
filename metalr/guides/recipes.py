"""Recipes.

.. include:: recipes.md
"""
