"""Which versions answer whom: labels, splits, canaries with guards, shadows; and what became of it."""
