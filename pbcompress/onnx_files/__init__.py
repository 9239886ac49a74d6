"""An ONNX file as a thing of its own: read, written whole, run, timed, and its costs counted.

Nothing here knows how a network becomes a file; that is `export`.
Start at `contents` and `session`.
"""
