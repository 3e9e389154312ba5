"""Options that several of the project's commands share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from models.networks import own
from models.records import Augmentation, DeltaRule, Diversity, Precision, Record, Regularisation, Schedule
from training import engines
from training.engines import ENGINES, Engine, EngineError

__all__ = [
    "MAX_SEED",
    "Argument",
    "chosen_engine",
    "data_option",
    "engine_options",
    "network_option",
    "recipe_options",
    "recipe_parts",
]

MAX_SEED = 2**63 - 1
"""What torch's generators take."""

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def data_option(function: Decorated) -> Decorated:
    """The ``--data`` option, as a :class:`~pathlib.Path` or ``None``."""
    return click.option(
        "--data",
        "data_folder",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Folder with the Fashion-MNIST files. Default: $FASHION_MNIST_DIR, the project's data folder, Debian's "
        "package, or a download.",
    )(function)


def engine_options(function: Decorated) -> Decorated:
    """``--engine`` and ``--address``, as ``engine_name`` and ``address``; see :func:`chosen_engine`."""
    named = click.option(
        "--engine",
        "engine_name",
        type=click.Choice(ENGINES),
        default="local",
        show_default=True,
        help="Where the work is done: in processes of this machine, or on a Ray cluster (pip install '.[scale]').",
    )
    address = click.option(
        "--address",
        help="Of the Ray cluster: auto, host:port or ray://host:port.  [default: $RAY_ADDRESS, or this machine's, "
        "started if there is none]",
    )
    return named(address(function))


def chosen_engine(name: str, address: str | None, *, workers: int | None = None, default: int = 1) -> Engine:
    """What the :func:`engine_options` say, and an option of as many ``workers`` here, else the ``default``. Raises
    :class:`click.ClickException` if it can't be had."""
    if address and name == "local":
        raise click.UsageError("--address is for --engine ray", click.get_current_context())
    if workers and name != "local":
        raise click.UsageError(
            "--workers is for --engine local: processes of this machine", click.get_current_context()
        )
    try:
        return engines.build(name, workers=workers or default, address=address)
    except EngineError as error:
        raise click.ClickException(str(error)) from error


def network_option(function: Decorated) -> Decorated:
    """The ``--network`` option, which trusts what it names, and gives the command nothing."""

    def trust(_: click.Context, __: click.Parameter, names: tuple[str, ...]) -> None:
        for name in names:
            if not own.is_own(name):
                raise click.BadParameter(f"{name!r} is not of the form package.module:factory")
            own.trust(name)

    return click.option(
        "--network",
        multiple=True,
        expose_value=False,
        callback=trust,
        metavar="PACKAGE.MODULE:FACTORY",
        help="Code of your own that BUNDLE may run to build its network; $DROPOUT_NETWORKS does the same.",
    )(function)


class Argument(click.ParamType[tuple[str, Any]]):
    """``NAME=VALUE``, the value as JSON; what isn't JSON is a string."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        name, equals, content = str(value).partition("=")
        if not (name and equals):
            self.fail(f"{value!r} is not of the form name=value", param, ctx)
        try:
            return name, json.loads(content)
        except json.JSONDecodeError:
            return name, content


def recipe_options(function: Decorated) -> Decorated:
    """The options that :func:`recipe_parts` takes."""
    deviation = partial(click.option, type=click.FloatRange(min=0), default=0.0, show_default=True)
    options = [
        deviation("--weight-decay", help="L2 penalty on weights, not on biases."),
        click.option(
            "--decoupled/--coupled",
            default=False,
            show_default=True,
            help="Take weight decay from the weights themselves, as AdamW does, or through Adam's gradient.",
        ),
        click.option(
            "--label-smoothing",
            type=click.FloatRange(0, 1, max_open=True),
            default=0.0,
            show_default=True,
            help="Share of each label that is spread over all classes.",
        ),
        click.option(
            "--max-norm",
            type=click.FloatRange(min=0, min_open=True),
            help="Bound on the norm of each unit's incoming weights.  [default: none]",
        ),
        deviation("--input-noise", help="Standard deviation of normal noise on normalised inputs."),
        deviation("--activation-noise", help="The same on what activation functions give."),
        deviation("--weight-noise", help="The same on weights, drawn for each batch."),
        click.option(
            "--delta-rule/--no-delta-rule",
            default=False,
            show_default=True,
            help="Noise on each weight that follows its gradient: the stochastic delta rule.",
        ),
        click.option(
            "--schedule",
            type=click.Choice(get_args(Schedule)),
            default="constant",
            show_default=True,
            help="Of the learning rate; one_cycle rises to --lr and falls again.",
        ),
        click.option(
            "--precision",
            type=click.Choice(get_args(Precision)),
            default="float32",
            show_default=True,
            help="Of products in training; bfloat16 is faster for convolutions on processors that have it.",
        ),
        click.option(
            "--diversity",
            type=click.FloatRange(min=0),
            default=0.0,
            show_default=True,
            help="Weight, in the loss, of the sub-networks' disagreement on synthetic outliers.",
        ),
        click.option(
            "--averaging",
            type=click.FloatRange(0, 1, max_open=True),
            default=0.0,
            show_default=True,
            help="Decay, at each batch, of a moving average of the weights that is kept in their place; 0: none.",
        ),
        click.option("--flip/--no-flip", default=False, show_default=True, help="Mirror half of the training images."),
        click.option(
            "--shift",
            type=click.IntRange(0, 27),
            default=0,
            show_default=True,
            help="Move training images by up to so many pixels.",
        ),
        click.option(
            "--erase",
            type=click.FloatRange(0, 1),
            default=0.0,
            show_default=True,
            help="Probability that a rectangle of a training image is erased.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def recipe_parts(options: Mapping[str, Any]) -> dict[str, Any]:
    """What the :func:`recipe_options` say: fields of a :class:`~models.records.Recipe`."""

    def of(record: type[Record]) -> dict[str, Any]:
        return {name: options[name] for name in record.model_fields}

    delta_rule = DeltaRule() if options["delta_rule"] else None
    return {
        "schedule": options["schedule"],
        "averaging": options["averaging"],
        "precision": options["precision"],
        "diversity": Diversity(weight=options["diversity"]),
        "regularisation": Regularisation(**{**of(Regularisation), "delta_rule": delta_rule}),
        "augmentation": Augmentation(**of(Augmentation)),
    }
