"""From planned samples to finished uint8 images: read, check, decode or gather, crop, resize, flip, augment.

Everything that handles bytes is here: DALI, resident images, Pillow, and read-ahead. `executor` has the common
interface, `factory` chooses an executor. May import `pipeline.views`, `pipeline.augmentation`, the plan and `shards`.
"""
