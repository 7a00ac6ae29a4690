"""The contract between training and serving (the bundle), and the conversion to ONNX."""
