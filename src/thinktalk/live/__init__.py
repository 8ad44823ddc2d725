"""The live engine: listens while the user speaks, speaks while it thinks."""
