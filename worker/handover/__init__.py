"""Whose predictions the outputs are, and how they change hands between groups."""
