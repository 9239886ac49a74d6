"""Cuts as data, carried out on a network and its optimizer, and proven right.

It never chooses what to cut.
Start at `shrinking`; `proof` holds a sliced network against a masked one.
"""
