"""One scorer or judge a file: the file name is the registration. See `palate.models.contracts.Scorer`."""
