"""``surgery inspect``: what a model's attention is, layer by layer, and what can be done to it."""
