"""Memory.

.. include:: memory.md
"""
