"""How a trained dropout network answers at test time, and how far to trust the answer."""
