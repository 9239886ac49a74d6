"""Files in fewer bits, and whether they are worth shipping.

It takes a float32 file and never touches the network's widths.
Start at `guards`; `int8_search` looks for the file that passes them.
"""
