"""Flows: invertible maps and densities on latents, trained to sample a target."""
