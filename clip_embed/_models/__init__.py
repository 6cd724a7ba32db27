"""Finding, opening and loading models, and what they compute in."""
