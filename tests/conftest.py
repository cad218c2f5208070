"""What every test file may ask for."""

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.services", "tests.web"]

# the same examples each time, however slow the machine is
settings.register_profile("tests", deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
settings.load_profile("tests")
