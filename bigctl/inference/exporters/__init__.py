"""Exporters: one file a format, see `formats`."""
