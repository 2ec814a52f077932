"""An installable plugin: its catalog is the TOML beside this file."""
