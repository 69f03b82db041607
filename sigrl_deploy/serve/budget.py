"""A number of bytes, or of anything, that is handed out and comes back."""

from __future__ import annotations
