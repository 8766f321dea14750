"""Shipped fakes: what our tests use, a user's tests can.

``VirtualClock`` is time that moves only when told; ``PuppetExecutor`` runs a batch only when told;
``models`` builds tiny TorchScript models; ``ServerProcess`` is a real server on free ports.
"""
