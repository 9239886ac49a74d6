"""Runs as TOML files: the recipe, the zoo of finished ones, and the demo.

Around the choices of `compress` a recipe has only the training before it and the export after it.
Start at `recipe`.
"""
