"""What answers HTTP. Never imports torch, never imports `workers`."""
