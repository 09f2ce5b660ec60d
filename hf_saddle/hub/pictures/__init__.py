"""Pictures of what grew."""
