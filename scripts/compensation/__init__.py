"""Importance criteria and allocations of widths."""
