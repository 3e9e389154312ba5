"""Networks, stochastic layers, the bundle on disk, and the bundles that ship with the project."""

__version__ = "0.1.0"
"""Of the whole project; here, where a Bento, which isn't installed, has it too."""
