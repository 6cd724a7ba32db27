"""What the integrations of data frames share: columns of vectors, ranking, pictures in notebooks."""
