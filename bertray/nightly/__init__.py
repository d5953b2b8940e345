"""Every night: score what is new, look at it, and say so on one page."""
