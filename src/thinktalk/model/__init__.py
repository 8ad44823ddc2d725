"""The networks: pure modules, tensors in and tensors out, no files, clock or sessions."""
