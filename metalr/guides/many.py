"""Many points, many devices.

.. include:: many.md
"""
