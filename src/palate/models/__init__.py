"""Models behind one contract, whatever their pipeline."""
