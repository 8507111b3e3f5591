"""Metrics loggers: TensorBoard, Weights & Biases, SwanLab, Trackio and Prometheus."""
