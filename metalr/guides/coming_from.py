"""Coming from another library.

.. include:: coming_from.md
"""
