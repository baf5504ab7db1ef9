"""One module per kind of stage: `CONFIG`, its settings, and `run`, the entry its code fingerprint starts from."""
