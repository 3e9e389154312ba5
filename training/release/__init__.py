"""The release: the bundles that ship, each made by one command. Stands above calibration, as the study does."""
