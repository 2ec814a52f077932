"""The catalog that ships with tokbench: a family a file, its code beside the TOML cards of its published operating points."""
