"""What is on disk: folders of weights, checkpoints, logs, cards, pictures."""
