"""From a recipe to a quantized graph and its parameters on disk."""
