"""The regularisation study: when dropout helps, on which networks and data sizes, and beside what.

Stands above calibration, though it lies in ``training``: it trains, and then asks the test-time strategies.
"""
