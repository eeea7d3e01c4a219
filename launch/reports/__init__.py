"""What a person sees of results: intervals, tables, pictures, progress."""
