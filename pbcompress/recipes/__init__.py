"""Runs as TOML files: the recipe, the zoo of finished ones, and the demo.

It adds no choice that `compress` does not have.
Start at `recipe`.
"""
