"""What all tests share. `pytester` runs a pytest inside a test, for the plugin that ships with the client."""

pytest_plugins = ["pytester"]
