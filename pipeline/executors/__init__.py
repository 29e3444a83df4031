"""From planned samples to uint8 pictures: read, check, decode or gather, crop, resize, flip.

Everything that touches bytes is here: DALI, resident images, Pillow, and read-ahead. `factory` chooses one, `executor`
says what they have in common. May import `pipeline.views`, `pipeline.augmentation`, the plan and `shards`.
"""
