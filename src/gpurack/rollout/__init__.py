"""Staged roll-out: a change goes to one host first, is tried there, and goes on to the others only if it holds.

``gpurack rollout INVENTORY`` runs the literal command on the canary host, asks the models there, and compares with the
acceptance limits; a canary that fails is given back what it served before, and no other host is touched.
"""
