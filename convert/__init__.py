"""Converters from official checkpoints to weight folders: `python convert/<model>_to_flax.py SOURCE FOLDER`."""
