"""How an image is made from a sample: crop and flip, the operations after them, and named presets of both.

A view is a frozen description; `plan_view` draws it. Nothing here touches pixels.
Imports only numpy and `pipeline.rng`.
"""
