"""Measures what a model costs: FLOPs, MFU, throughput, and memory of weights, activations and losses."""
