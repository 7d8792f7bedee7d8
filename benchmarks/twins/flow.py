"""The paper's flow in plain PyTorch: affine couplings, each followed by a global scale and a fixed rotation.

RealNVP, arXiv 1605.08803, with the soft clamp 2 tanh and the softplus scale of FrEIA's all-in-one block.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from benchmarks.twins.tensors import tensors

SLOPE = 0.1  # of the leaky ReLU


class AllInOne:
    """Noise to latents and log-determinants; the arrays are those of an "allinone" flow of one block."""

    def __init__(self, params: dict[str, torch.Tensor], rotations: torch.Tensor):
        """Of the parameters by path, and the rotations (layers, D, D)."""
        self.params, self.rotations = params, rotations

    def __call__(self, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, D) to (B, D) and (B,)."""
        x, log_det = eps, torch.zeros(len(eps))
        split = x.shape[1] - x.shape[1] // 2
        for index, rotation in enumerate(self.rotations):
            name = f"flows_0/layers_{index}/"
            hidden = functional.leaky_relu(self.linear(f"{name}conditioner/Dense_0", x[:, :split]), SLOPE)
            raw, shift = (0.1 * self.linear(f"{name}conditioner/Dense_1", hidden)).chunk(2, dim=1)
            log_scale = 2 * torch.tanh(raw)
            x = torch.cat([x[:, :split], x[:, split:] * torch.exp(log_scale) + shift], dim=1)
            scale = 0.2 * functional.softplus(self.params[f"{name}global_scale"] / 2)
            x = (x * scale + self.params[f"{name}global_offset"]) @ rotation.T
            log_det = log_det + log_scale.sum(1) + scale.log().sum()
        return x, log_det

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """A dense layer."""
        return x @ self.params[f"{name}/kernel"] + self.params[f"{name}/bias"]

    @classmethod
    def of(cls, flow, params) -> AllInOne:
        """Of a flow of the library and its parameters, which ask for gradients."""
        rotations = tensors({"rotations": flow.buffers["flows_0"]["rotations"].whole()})["rotations"]
        return cls(tensors(params, trained=True), rotations)

    def gradients(self, *, forget: bool = True) -> dict:
        """Of the last backward pass, by path."""
        found = {name: value.grad.numpy().copy() for name, value in self.params.items()}
        for value in self.params.values() if forget else ():
            value.grad = None
        return found


def kl_prior(eps: torch.Tensor, z: torch.Tensor, log_det: torch.Tensor) -> torch.Tensor:
    """Log q - log p_z (B,) of a standard normal prior, nats."""
    return log_normal(eps) - log_det - log_normal(z)


def log_normal(x: torch.Tensor) -> torch.Tensor:
    """Log density (B,) of N(0, I)."""
    return -0.5 * (x.square().sum(1) + x.shape[1] * math.log(2 * math.pi))
