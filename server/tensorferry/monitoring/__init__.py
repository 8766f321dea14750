"""What the server tells of itself: metrics, the live page, and what both are made of.

Everything is a ``Family`` of series (``families.py``): collected from the engine and the transport
(``collect*.py``), added up over processes, written as Prometheus' text (``exposition.py``), and turned into
rates and quantiles for people (``frames.py``).
"""
