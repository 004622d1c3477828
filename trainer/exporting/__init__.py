"""A run's model as a folder that proves itself: export, merge, proof, ONNX, hub."""
