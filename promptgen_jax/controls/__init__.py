"""Controls: named energies on images, one adapter a file."""
