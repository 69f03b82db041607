"""Label sets: what people call the things to look for, and label files."""
