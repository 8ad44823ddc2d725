"""How fast it is: calls in real time, every network alone, and the reference beside it."""
