"""Training methods. Most are composed of a mixing, an objective and a stage; some are whole, each in its own file.

`registry.find_method` finds them by name. May import `train.models`, `train.losses`, `train.inputs` and the schedules;
this file imports nothing, so `presets` can be read without importing torch.
"""
