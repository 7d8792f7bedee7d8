"""A small CLIP of this project's own, trained on faces of the shipped generator.

It knows these faces and a few dozen words, and stands in for a published CLIP where none is installed:
`python -m promptgen_jax.tinyclip.train --output ported_weights/tinyclip_faces`.
"""
