"""The benchmark of models on a GPU: ``python -m loadtests.gpu``, or ``make bench-gpu``."""
