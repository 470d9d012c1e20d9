"""Limits.

.. include:: limits.md
"""
