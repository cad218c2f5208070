"""What burns CPU or GPU. Stages know neither queue nor web; only `workers.jobs` knows their order."""
