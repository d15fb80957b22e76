"""How a network is trained: configuration, optimizers, schedules, augmentation, averaged weights."""
