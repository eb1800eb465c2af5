"""The stages, each declared as a `Job`; the script of the same name does the work."""
