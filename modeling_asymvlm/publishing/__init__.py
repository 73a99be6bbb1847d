"""Upload to the Hub; export to ONNX."""
