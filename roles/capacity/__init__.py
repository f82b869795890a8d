"""What models' memory is planned with; see README.md."""
