"""People with accounts: passwords, one-time links, sessions."""
