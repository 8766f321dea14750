"""Load tests: scenarios as data, run by locust, with a verdict. See README.md here."""
