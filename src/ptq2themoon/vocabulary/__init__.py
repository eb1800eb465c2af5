"""The words of the project: parameters, recipes, roles, bits, and where every result lies. Without torch."""
