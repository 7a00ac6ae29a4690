"""Converters from published data sets to keyfold event logs."""
