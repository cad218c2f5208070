"""What every test file may ask for."""

pytest_plugins = ["tests.services", "tests.web"]
