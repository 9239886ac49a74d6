"""Latency of narrower networks in ONNX Runtime."""
