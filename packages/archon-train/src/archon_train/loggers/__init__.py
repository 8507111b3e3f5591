"""Metrics loggers: TensorBoard, Weights & Biases, SwanLab and Trackio."""
