"""What a recipe adds to plain training, each a piece of its own; :func:`training.fit.fit` puts them together.

Dropout of every kind and batch normalisation are layers of the network instead, in :mod:`models`. Random numbers are
torch's global ones, as those of its dropout layers are; ``fit`` has seeded them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.records import DeltaRule, Recipe, Regularisation

__all__ = [
    "StochasticWeights",
    "activation_noise",
    "activations_of",
    "averaged",
    "bernoulli",
    "bound_norms",
    "noisy",
    "normal",
    "optimizer_for",
    "schedule_for",
    "stochastic_weights",
    "weights_of",
]

NO_ACTIVATION = (nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.Softmin, nn.MultiheadAttention)
RISE = 0.3
"""Share of the batches over which the one cycle's learning rate rises."""


def weights_of(network: nn.Module) -> list[nn.Parameter]:
    """The weights of products and convolutions: no biases, no parameters of normalisation, no embeddings."""
    return [
        parameter
        for module in network.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name.startswith("weight") and parameter.dim() > 1
    ]


def activations_of(network: nn.Module) -> list[nn.Module]:
    """The modules that are activation functions of torch's. Raises ``ValueError`` if there are none."""
    found = [
        module
        for module in network.modules()
        if type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, NO_ACTIVATION)
    ]
    if not found:
        raise ValueError(f"{type(network).__name__} has no activation modules that noise could be added to")
    return found


def optimizer_for(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam, with weight decay of the :func:`weights_of` the network.

    Coupled decay adds ``weight_decay`` times the weight to its gradient: an L2 penalty of half that. Decoupled decay
    takes ``learning_rate * weight_decay`` of the weight at each step, whatever its gradient (Loshchilov & Hutter 2019).
    """
    decay = recipe.regularisation.weight_decay
    kind = torch.optim.AdamW if recipe.regularisation.decoupled else torch.optim.Adam
    decayed = weights_of(network) if decay else []
    theirs = {id(parameter) for parameter in decayed}
    others = [parameter for parameter in network.parameters() if id(parameter) not in theirs]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return kind([group for group in groups if group["params"]], lr=recipe.learning_rate, fused=True)


def schedule_for(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> LRScheduler | None:
    """The learning rate over ``steps`` batches: one cycle that rises for :data:`RISE` of them; ``None``: constant."""
    if recipe.schedule == "constant":
        return None
    return OneCycleLR(optimizer, recipe.learning_rate, steps, pct_start=RISE, cycle_momentum=False)


def averaged(network: nn.Module, decay: float) -> AveragedModel | None:
    """What keeps the moving averages of the weights and of batch norm's statistics; ``None`` for a ``decay`` of 0."""
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True) if decay else None


def noisy(inputs: Tensor, deviation: float) -> Tensor:
    """With normal noise added: to second order in ``deviation``, a penalty of deviation**2 / 2 times the trace of the
    loss's Hessian in the input, which for a linear model under squared error is Tikhonov's (Bishop 1995)."""
    return inputs + deviation * torch.randn_like(inputs) if deviation else inputs


@contextmanager
def activation_noise(network: nn.Module, deviation: float) -> Iterator[None]:
    """Within it, in train mode, each activation function's output has normal noise added.

    Raises ``ValueError`` if there is noise to add and the network has no activation modules.
    """

    def add(module: nn.Module, _: object, output: Tensor) -> Tensor | None:
        return noisy(output, deviation) if module.training else None

    with ExitStack() as stack:
        for module in activations_of(network) if deviation else ():
            stack.callback(module.register_forward_hook(add).remove)
        yield


def normal(mean: Tensor, deviation: Tensor) -> Tensor:
    """Normal weights, independent of each other; any shape."""
    return torch.addcmul(mean, deviation, torch.randn_like(mean))


def bernoulli(mean: Tensor, deviation: Tensor) -> Tensor:
    """Weights ``[out, in]`` that are 0 or one other value, which makes their mean and deviation those given.

    What leaves a unit, a column, is drawn by one random number: with ``deviation`` = |mean| sqrt(p / (1 - p)) the
    column is 0 with probability p and ``mean`` / (1 - p) otherwise, as by dropout of the unit at rate p.
    """
    kept = mean.square() / (mean.square() + deviation.square())
    return torch.where(torch.rand_like(mean[:1]) < kept, mean / kept, 0)


class StochasticWeights:
    """Weights that are drawn anew for each batch, around their means, which the optimiser moves by the gradient at the
    weights drawn: the stochastic delta rule (Hanson 1990; Frazier-Logue & Hanson 2018). ``rule`` says how the
    ``deviations``, one tensor for each of the ``weights``, follow the gradient; ``draw`` is :func:`normal`, or
    :func:`bernoulli`, of which dropout is a case.

    Noise of one size (Murray & Edwards 1994) is its case with a ``rate`` of 0 and a ``decay`` of 1.
    """

    def __init__(
        self, weights: Sequence[Tensor], rule: DeltaRule, *, draw: Callable[[Tensor, Tensor], Tensor] = normal
    ) -> None:
        self._weights, self._rule, self._draw = tuple(weights), rule, draw
        self.deviations = tuple(torch.full_like(weight, rule.initial) for weight in weights)

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """Within it, for a forward and a backward pass, the weights are drawn; afterwards they are the means again."""
        means = [weight.detach().clone() for weight in self._weights]
        with torch.no_grad():
            for weight, mean, deviation in zip(self._weights, means, self.deviations, strict=True):
                weight.copy_(self._draw(mean, deviation))
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, mean in zip(self._weights, means, strict=True):
                    weight.copy_(mean)
        for weight, deviation in zip(self._weights, self.deviations, strict=True):
            if weight.grad is not None:
                deviation.add_(weight.grad.abs(), alpha=self._rule.rate).mul_(self._rule.decay)


def stochastic_weights(network: nn.Module, regularisation: Regularisation) -> list[StochasticWeights]:
    """Weight noise and the stochastic delta rule, as far as they are wanted."""
    rules = [regularisation.delta_rule] if regularisation.delta_rule else []
    if noise := regularisation.weight_noise:
        rules.append(DeltaRule(initial=noise, rate=0, decay=1))
    return [StochasticWeights(weights_of(network), rule) for rule in rules]


@torch.no_grad()
def bound_norms(weights: Sequence[Tensor], bound: float) -> None:
    """Shorten, in place, what comes into a unit to the Euclidean norm ``bound`` where it is longer: the rows of a
    matrix, the filters of a convolution (Srebro & Shraibman 2005; Srivastava et al. 2014, section 5.1)."""
    for weight in weights:
        weight.copy_(torch.renorm(weight, p=2, dim=0, maxnorm=bound))
