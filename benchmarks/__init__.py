"""How fast the package is, beside what else there is for the same work."""
