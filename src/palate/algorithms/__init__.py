"""One paper, one file: the file name is the registration. See `palate.models.contracts.Algorithm`."""
