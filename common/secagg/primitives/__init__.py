"""Building blocks of secure aggregation that know nothing of clients and rounds."""
