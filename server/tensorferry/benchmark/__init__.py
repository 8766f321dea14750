"""Load for a running server: calls that leave on a schedule or in a closed loop, and what became of them."""
