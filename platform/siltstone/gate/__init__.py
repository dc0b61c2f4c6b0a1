"""The gate a candidate core must pass: what is measured on it, the checks of a policy, and the verdict."""
