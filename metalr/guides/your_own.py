"""Your own engine, your own step.

.. include:: your_own.md
"""
