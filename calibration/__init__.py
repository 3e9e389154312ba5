"""How a trained dropout network answers at test time, and how far to trust the answer."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibration.prediction import predict

__all__ = ["predict"]


def __getattr__(name: str) -> Any:
    # Imported when asked for: the service imports this package, and must not import training.
    if name == "predict":
        from calibration.prediction import predict  # noqa: PLC0415

        return predict
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
