"""Thin bridges to libraries that generate text; each module imports its library, and no other."""
