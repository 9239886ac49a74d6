"""Cycles of growth: neuron phases and dendrite phases, from policy to trained network.

It changes no width and exports nothing.
Start at `recover`; `policy` decides what comes next from scores alone.
"""
