"""What narrowed layers lost is made good in closed form, without labels and without a gradient.

It changes weights and never widths, and it trains nothing.
Start at `compensate`; `readers` finds the layers, `views` says what a layer's regression is, and
`ridge` solves it.
"""
