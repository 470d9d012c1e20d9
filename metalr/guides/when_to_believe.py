"""When to believe a hypergradient.

.. include:: when_to_believe.md
"""
