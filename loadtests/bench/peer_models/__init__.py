"""What the peers run: each file here belongs to one peer, and is run by its environment, not by ours."""
