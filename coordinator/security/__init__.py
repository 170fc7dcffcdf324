"""Whether an installation of the coordinator is safe as it stands, and what is to be done."""
