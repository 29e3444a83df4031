"""How a picture of a sample is made: its crop and flip, the operations after them, and named presets of both.

A view is a frozen description; `plan_view` draws it. Nothing here touches pixels.
Imports numpy and `pipeline.rng` only.
"""
