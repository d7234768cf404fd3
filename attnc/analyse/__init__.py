"""The analyses that make a plan of a program."""
