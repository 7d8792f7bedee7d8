"""The paper's flow at d = 512: the terms of the loss that need no image, with the gradient by its parameters."""

from __future__ import annotations

import functools

from benchmarks.case import Case, Side, compiled, flat_tree, trained


def cases(quick: bool) -> list[Case]:
    """One a batch size."""
    return [
        Case(
            name=f"flow/{batch}",
            title=f"flow, d = {16 if quick else 512}, with gradient, batch {batch}",
            ours=functools.partial(ours, batch, quick),
            other=functools.partial(torch, batch, quick),
        )
        for batch in ((8,) if quick else (64, 1024))
    ]


def flow(quick: bool):
    """Flow, parameters and prior."""
    import jax

    import promptgen_jax as pg

    options = {"num_layers": 2, "hidden_dim": 8} if quick else {"num_layers": 8, "hidden_dim": 256}
    prior = pg.Prior.standard(16 if quick else 512)
    made, params = pg.init_flow(jax.random.key(0), prior, architecture="allinone", **options)
    return made, trained(params), prior


def ours(batch: int, quick: bool) -> Side:
    """The flow of the library."""
    import jax
    import jax.numpy as jnp

    made, params, prior = flow(quick)

    def loss(params, flow, eps):
        z, log_det = flow.forward_and_log_det(params, eps)
        return jnp.mean(prior.log_prob(eps) - log_det - prior.log_prob(z))

    def loss_and_gradient(params, flow, eps):
        value, gradient = jax.value_and_grad(loss)(params, flow, eps)
        return {"loss": value} | flat_tree(gradient)

    return compiled(loss_and_gradient, params, made, prior.sample(jax.random.key(1), batch))


def torch(batch: int, quick: bool) -> Side:
    """The twin."""
    import jax

    from benchmarks.twins.flow import AllInOne, kl_prior
    from benchmarks.twins.tensors import tensors

    made, params, prior = flow(quick)
    twin, eps = AllInOne.of(made, params), tensors({"eps": prior.sample(jax.random.key(1), batch)})["eps"]

    def run():
        z, log_det = twin(eps)
        loss = kl_prior(eps, z, log_det).mean()
        loss.backward()
        return {"loss": loss.detach().numpy()} | twin.gradients()

    return Side(run)
