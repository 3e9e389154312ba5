"""The HTTP service: predictions with confidence and uncertainty."""
