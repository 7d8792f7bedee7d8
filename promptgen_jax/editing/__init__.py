"""Given pictures and ways between them: latents of a picture, and steps from one noise to another."""
