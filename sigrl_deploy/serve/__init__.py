"""The HTTP service: pictures in, tags out, within bounds."""
