"""mmlaunch: one YAML recipe becomes a multi-node alignment run that heals itself."""

__version__ = "0.3.0"
