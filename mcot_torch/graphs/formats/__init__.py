"""State graphs in and out of files and of other libraries."""
