"""From shards to batches on the device: plan, executors, augmentation. Independent of models and losses."""
