"""The steps by which a project's database came to be as `schema` says; run by `palate.store.upgrade`."""
