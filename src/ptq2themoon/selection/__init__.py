"""Recipes found by search: which sites of a model need per-channel scales."""
