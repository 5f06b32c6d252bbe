"""What every provider of an interface keeps."""
