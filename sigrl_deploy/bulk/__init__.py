"""A run over pictures in any number, on Ray Data."""
