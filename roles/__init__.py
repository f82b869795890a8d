"""Roles: one folder each, applied in the order of deploys/site.py."""
