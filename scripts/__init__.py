"""Measurements, a folder for each family; each README says what was asked, and how it is run."""
