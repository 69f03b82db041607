"""The service: a bundle that tags pictures which come over HTTP."""
