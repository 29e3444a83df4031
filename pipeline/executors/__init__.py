"""From planned samples to finished uint8 pictures: read, check, decode or gather, crop, resize, flip, augment.

Everything that touches bytes is here: DALI, resident images, Pillow, and read-ahead. `executor` says what the executors
have in common, `factory` chooses one. May import `pipeline.views`, `pipeline.augmentation`, the plan and `shards`.
"""
