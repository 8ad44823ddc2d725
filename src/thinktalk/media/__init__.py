"""Bytes in, arrays out, and back to bytes: numpy only, never torch."""
