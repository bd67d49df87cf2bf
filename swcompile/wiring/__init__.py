"""Wirings: from a layer graph and options to a plan. Pure, seeded, without torch."""
