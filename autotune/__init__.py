"""Tuning: which config of a kernel is fastest on one kind of hardware, found once and shared.

``request`` and ``bucket`` say what is tuned, ``key`` names it, ``record`` and ``store`` keep what was measured,
``lookup`` finds it again at run time; ``tuner`` searches, with ``worker`` processes that compile and measure.
"""
