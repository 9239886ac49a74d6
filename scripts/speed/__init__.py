"""How fast is what ships: narrower networks in ONNX Runtime and in torch."""
