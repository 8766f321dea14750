"""The demonstration: transactions, a model trained on them, the real server, load, and a report.

``python -m demo --help`` from the repository's root. Everything it writes lies in ``.demo/``.
"""
