"""What can be said of finished runs, from their files."""
