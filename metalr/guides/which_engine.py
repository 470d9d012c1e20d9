"""Which engine?

.. include:: which_engine.md
"""
