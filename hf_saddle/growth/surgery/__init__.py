"""How a model changes: drafts of its parameters, and how they take their place, all or none."""
