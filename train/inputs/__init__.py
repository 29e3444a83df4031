"""From uint8 batches to the network's input: paste, blend, normalise, channels last; fused on a GPU.

Normalisation happens nowhere else. Imports nothing else from `train`.
"""
