"""Exported graphs brought to one form: normalised, and fused into single operators."""
