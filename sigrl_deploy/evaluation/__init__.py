"""How well a model ranks labels: mAP and F1@K on a data set, and how far an exported model is from the one in PyTorch."""
