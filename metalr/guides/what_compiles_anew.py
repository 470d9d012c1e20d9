"""What compiles anew.

.. include:: what_compiles_anew.md
"""
