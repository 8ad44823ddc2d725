"""The small world that spark is trained and measured in."""
