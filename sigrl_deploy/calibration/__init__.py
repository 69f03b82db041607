"""From scores and targets of some pictures: thresholds, how well they do on other pictures, and probabilities."""
