"""The invariants by subject; `fsd.core.check` runs them."""
