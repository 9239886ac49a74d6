"""Measurements, a folder for each family; each README has the question and the command."""
