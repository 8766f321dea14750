"""What should be served, and how it changes while the server runs."""
