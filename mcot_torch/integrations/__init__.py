"""Our reasoners in other libraries' hands."""
