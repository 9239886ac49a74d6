"""Networks side by side: costs, scores with intervals, tables, pictures.

It measures what it is given and changes nothing.
Start at `side_by_side`.
"""
