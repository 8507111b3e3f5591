"""Checks that compare what the device computes with a reference on the CPU in float64."""
