"""Layers of PyTorch in our layout, under the name by which converters know them: see `promptgen_jax.models.recipe`."""

from promptgen_jax.models.recipe import affine as affine
from promptgen_jax.models.recipe import conv as conv
from promptgen_jax.models.recipe import conv_norm as conv_norm
from promptgen_jax.models.recipe import dense as dense
from promptgen_jax.models.recipe import norm as norm
from promptgen_jax.models.recipe import norm_parts as norm_parts
from promptgen_jax.models.recipe import unused as unused
