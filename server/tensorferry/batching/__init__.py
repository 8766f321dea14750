"""Coalescing: one request in flight, the pure decision when a batch leaves, and the queue's one owner."""
