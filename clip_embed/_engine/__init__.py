"""From pixels to vectors at the machine's speed: pipe, batches, threads, forks."""
