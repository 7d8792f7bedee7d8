"""The shipped faces: DCGAN, and a training step that makes everybody smile."""

from __future__ import annotations

import functools

from benchmarks.case import Case, Side, compiled, flat_tree, trained

LEARNING_RATE, STEPS = 1e-3, 100


def cases(quick: bool) -> list[Case]:
    """The generator with and without its gradient, and the step."""
    batch = 2 if quick else 32
    sides = {
        "dcgan-forward": (f"DCGAN, batch {batch}: forward", our_images, torch_images, False),
        "dcgan-gradient": (f"DCGAN, batch {batch}: forward and gradient of z", our_images, torch_images, True),
    }
    found = [
        Case(f"faces/{name}", title, functools.partial(one, batch, last), functools.partial(two, batch, last))
        for name, (title, one, two, last) in sides.items()
    ]
    step = Case(
        "faces/step",
        f"face step (DCGAN + smile classifier, flow, optimiser), batch {batch}",
        functools.partial(our_step, batch),
        functools.partial(torch_step, batch),
    )
    return [*found, step]


def inputs(batch: int):
    """Latents (B, 100), and a cotangent (B, 64, 64, 3) of the images."""
    import jax

    z = jax.random.normal(jax.random.key(1), (batch, 100))
    return z, jax.random.normal(jax.random.key(2), (batch, 64, 64, 3)) / 64


def our_images(batch: int, gradient: bool) -> Side:
    """The generator of the library."""
    import jax

    import promptgen_jax as pg

    def images(generator, z, cotangent):
        made, pullback = jax.vjp(lambda z: generator(jax.random.key(0), z), z)
        return {"images": made} | ({"gradient": pullback(cotangent)[0]} if gradient else {})

    return compiled(images, pg.load_generator("dcgan_digiface"), *inputs(batch))


def torch_images(batch: int, gradient: bool) -> Side:
    """The twin."""
    import torch

    import promptgen_jax as pg
    from benchmarks.twins.faces import DCGAN
    from benchmarks.twins.tensors import channels_first, channels_last, tensors

    twin, (z, cotangent) = DCGAN(tensors(pg.load_generator("dcgan_digiface").weights)), inputs(batch)
    z, cotangent = tensors({"z": z})["z"].requires_grad_(gradient), channels_first(cotangent)

    def run():
        z.grad = None
        with torch.set_grad_enabled(gradient):
            images = twin(z)
        if gradient:
            images.backward(cotangent)
        return images

    def numbers(images):
        return {"images": channels_last(images)} | ({"gradient": z.grad.numpy()} if gradient else {})

    return Side(run, numbers=numbers)


def smiles():
    """Everybody smiles: the target, its flow and parameters."""
    import jax

    import promptgen_jax as pg

    control = pg.load_control(
        "classifier", network="faceapi_expression", attribute="expression", target="happy", weight=3.0
    )
    ebm = pg.LatentEBM(pg.load_generator("dcgan_digiface"), (control,))
    options = {"architecture": "allinone", "num_layers": 8, "hidden_dim": 128}
    flow, params = pg.init_flow(jax.random.key(4), ebm.generator.prior, **options)
    return ebm, flow, trained(params)


def loss_and_gradient(batch: int, params, key, ebm, flow) -> dict:
    """Of reverse KL: the loss, and its gradient by the flow, by path."""
    import jax

    from promptgen_jax.objectives import ReverseKL

    objective = ReverseKL(batch_size=batch)
    loss, gradient = jax.value_and_grad(lambda params: objective(params, key, ebm, flow)[0])(params)
    return {"loss": loss} | flat_tree(gradient)


def our_step(batch: int) -> Side:
    """Loss, gradient, clipping and the update of the official optimiser."""
    import jax

    from promptgen_jax.objectives import ReverseKL
    from promptgen_jax.training.optimizer import make_optimizer

    ebm, flow, params = smiles()
    optimizer = make_optimizer(learning_rate=LEARNING_RATE, num_steps=STEPS)
    objective = ReverseKL(batch_size=batch)

    def step(params, opt_state, key, ebm, flow):
        loss, gradient = jax.value_and_grad(lambda params: objective(params, key, ebm, flow)[0])(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        params = jax.tree.map(jax.numpy.add, params, updates)
        return {"loss": loss, "params": params, "opt_state": opt_state} | flat_tree(gradient)

    side = compiled(step, params, optimizer.init(params), jax.random.key(5), ebm, flow)

    def numbers(found):
        return {name: jax.numpy.asarray(leaf) for name, leaf in found.items() if name not in ("params", "opt_state")}

    return Side(side.run, side.facts, numbers)


def torch_step(batch: int) -> Side:
    """The twin."""
    import torch

    from benchmarks.twins.faces import DCGAN, Expression
    from benchmarks.twins.tensors import tensors

    ebm, flow, params = smiles()
    (control,) = ebm.controls
    eps, _ = noise_and_key(ebm, batch, control.name)
    generator, classifier = DCGAN(tensors(ebm.generator.weights)), Expression(tensors(control.network.weights))
    label = control.network.label_index(control.attribute, control.target)

    def energy(z):
        return -3.0 * torch.log_softmax(classifier(generator(z)), dim=1)[:, label]

    return twin_step(flow, params, eps, energy, update=True)


def noise_and_key(ebm, batch: int, control: str):
    """The noise (B, D) that the objective draws under key 5, as a tensor, and the key that a control then gets."""
    import jax

    from benchmarks.twins.tensors import tensors
    from promptgen_jax.ebm import _named_key

    key_eps, key_ebm = jax.random.split(jax.random.key(5))
    eps = ebm.generator.prior.sample(key_eps, batch)
    return tensors({"eps": eps})["eps"], _named_key(key_ebm, control)


def twin_step(flow, params, eps, energy, *, update: bool = False) -> Side:
    """Loss of reverse KL and its gradient by the flow in torch; with the update of Adam, clipped to norm 1."""
    import torch

    from benchmarks.twins.flow import AllInOne, kl_prior

    twin = AllInOne.of(flow, params)
    trained = list(twin.params.values())
    start = [value.detach().clone() for value in trained]
    optimizer = torch.optim.Adam(trained, lr=LEARNING_RATE)

    def run():
        z, log_det = twin(eps)
        loss = kl_prior(eps, z, log_det).mean() + energy(z).mean()
        loss.backward()
        found = {"loss": loss.detach().numpy()} | twin.gradients(forget=not update)
        if update:
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():  # the same step again, as ours
                for value, before in zip(trained, start, strict=True):
                    value.copy_(before)
        return found

    return Side(run)
