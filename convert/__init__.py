"""Converters from official checkpoints to weight folders: `convert/<model>_to_flax.py SOURCE FOLDER`."""
