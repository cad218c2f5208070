"""What takes longer than `make test` may: the product under faults and load. `make soak` runs it."""
