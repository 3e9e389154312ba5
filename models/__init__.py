"""Networks, stochastic layers, the bundle on disk, and the bundles that ship with the project."""
