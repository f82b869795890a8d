"""Offline bundles: everything a site needs, in one directory that is carried to it."""
