"""Your model.

.. include:: your_model.md
"""
