"""Compensation in closed form, right after the cut."""
