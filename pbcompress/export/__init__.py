"""From a trained network to a file that computes the same: fuse, translate, prove.

It changes no width, and leaves fewer bits to `quantization`.
Start at `onnx_export`; `pt2` and `spec` write the other formats, and a new one stands beside
them.
"""
