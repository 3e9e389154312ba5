"""Networks, stochastic layers, the bundle on disk, and the bundles that ship with the project."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.bundle import load as load_bundle

__all__ = ["__version__", "load_bundle"]

__version__ = "0.1.0"
"""Of the whole project; here, where a Bento, which isn't installed, has it too."""


def __getattr__(name: str) -> Any:
    # Imported when asked for: the service's supervisor imports this package, and has no use for torch.
    if name == "load_bundle":
        from models.bundle import load  # noqa: PLC0415

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
