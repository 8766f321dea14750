# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""Count durations into the buckets of ``histogram.py``, which holds the bounds and does without this file.

Each value is searched for by itself: six comparisons of doubles cost less than one of Python's objects.
"""

from cpython cimport array

cdef enum:
    MOST_BOUNDS = 128

cdef double _bounds[MOST_BOUNDS]
cdef Py_ssize_t _count = 0


def use(bounds):
    """Set the upper bounds, ascending and at most 128 of them. Once, before anything is counted."""
    global _count
    if len(bounds) > MOST_BOUNDS:
        raise ValueError("too many bounds")
    for index, bound in enumerate(bounds):
        _bounds[index] = bound
    _count = len(bounds)


cdef inline Py_ssize_t _bucket(double value) noexcept nogil:
    """Return the first bucket whose bound the value doesn't exceed; the last, open one if there is none."""
    cdef Py_ssize_t low = 0
    cdef Py_ssize_t high = _count
    cdef Py_ssize_t middle
    while low < high:
        middle = (low + high) >> 1
        if _bounds[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


def tally(array.array counts not None, list values not None, double shift):
    """Count each of ``values``, ``shift`` longer, in ``counts``: 64-bit integers, one more than bounds."""
    cdef long long *at = counts.data.as_longlongs
    if len(counts) != _count + 1 or counts.ob_descr.itemsize != 8:
        raise ValueError("counts have other buckets")
    for value in values:
        at[_bucket(<double> value + shift)] += 1


def tally_one(array.array counts not None, double value):
    """Count one value."""
    if len(counts) != _count + 1 or counts.ob_descr.itemsize != 8:
        raise ValueError("counts have other buckets")
    counts.data.as_longlongs[_bucket(value)] += 1
