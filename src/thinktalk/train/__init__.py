"""Training: data and losses for every network, and the loop that runs them in resumable legs."""
