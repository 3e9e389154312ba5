from __future__ import annotations

from models import bundle
from tests.command_line import refused, run


def test_a_bundle_is_verified_and_named(shipped: bundle.Bundle) -> None:
    done = run("models", "mlp")
    assert done.returncode == 0
    assert f"mlp, version {shipped.version}, RandomDropoutModel with 102,070 parameters, calibrated for" in done.stdout


def test_what_cannot_be_verified_is_one_line() -> None:
    assert "no bundle 'nowhere'" in refused("models", "nowhere", code=1)
    assert "Missing argument 'BUNDLE'" in refused("models", "verify", code=2)
    alone = run("models")
    assert alone.returncode == 2
    assert "Make a bundle of a network that was trained elsewhere" in alone.stderr
