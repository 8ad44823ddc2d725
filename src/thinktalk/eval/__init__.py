"""Measuring what the system claims, on cases it has never met."""
