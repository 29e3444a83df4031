"""Training methods. Most are a mixing, an objective and a stage put together; some are whole, in a file of their own.

`registry.find_method` knows them all by name. May import `train.models`, `train.losses`, `train.inputs` and the
schedules; this file imports nothing, so that `presets` can be read where torch is not wanted yet.
"""
