"""From shards to batches on the device: plan, executors, augmentation. Knows no model and no loss."""
